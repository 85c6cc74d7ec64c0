#pragma once

#include <napi.h>

#include "unique_fd.h"

namespace nested_kvm {

// JS class ImageFile: what fs has no name for on a disk image, a regular file or a block device: locks of its open file
// description, holes, its size. Reading and writing are fs's.
class ImageFile : public Napi::ObjectWrap<ImageFile> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit ImageFile(const Napi::CallbackInfo& info);

 private:
  Napi::Value Size(const Napi::CallbackInfo& info);
  Napi::Value Lock(const Napi::CallbackInfo& info);
  Napi::Value IsLocked(const Napi::CallbackInfo& info);
  Napi::Value PunchHole(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  UniqueFd fd_;
};

}  // namespace nested_kvm
