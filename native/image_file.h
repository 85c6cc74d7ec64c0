#pragma once

#include <napi.h>
#include <sys/uio.h>

#include <vector>

#include "unique_fd.h"

namespace nested_kvm {

// JS class ImageFile: what fs has no name for on a disk image, a regular file or a block device: locks of its open file
// description, holes, its size, reading what needs no wait. Else reading and writing are fs's.
class ImageFile : public Napi::ObjectWrap<ImageFile> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit ImageFile(const Napi::CallbackInfo& info);

 private:
  Napi::Value Size(const Napi::CallbackInfo& info);
  Napi::Value Lock(const Napi::CallbackInfo& info);
  Napi::Value IsLocked(const Napi::CallbackInfo& info);
  Napi::Value ReadNow(const Napi::CallbackInfo& info);
  Napi::Value PunchHole(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  UniqueFd fd_;
  std::vector<iovec> iov_;  // of one call
};

}  // namespace nested_kvm
