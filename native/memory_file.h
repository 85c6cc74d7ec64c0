#pragma once

#include <napi.h>

#include <cstdint>
#include <memory>

#include "mapping.h"
#include "unique_fd.h"

namespace nested_kvm {

// JS class MemoryFile: a file whose pages guest memory is made of. Either new and without a name (memfd), or an existing
// one, read-only.
class MemoryFile : public Napi::ObjectWrap<MemoryFile> {
 public:
  static constexpr napi_type_tag kTypeTag = {0x1b6f0e5c6a7d4c11, 0x9d3b52c8e0f1a205};
  static Napi::Function Define(Napi::Env env);
  explicit MemoryFile(const Napi::CallbackInfo& info);

  int fd() const { return fd_.get(); }
  // Whether its pages are of the host's pool of huge pages.
  bool hugetlb() const { return hugetlb_; }
  // Bytes, as the file has them now. 0 where it is closed.
  uint64_t Size() const;

 private:
  Napi::Value DataRanges(const Napi::CallbackInfo& info);
  Napi::Value Read(const Napi::CallbackInfo& info);
  Napi::Value Write(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);
  template <typename Transfer>
  Napi::Value Copy(const Napi::CallbackInfo& info, const char* name, Transfer transfer);

  UniqueFd fd_;
  // Whether the file is ours alone, so that nobody can cut it short.
  bool own_ = false;
  bool hugetlb_ = false;
  // All of a file of our own, for reading: made with the first Read().
  std::unique_ptr<Mapping> view_;
};

}  // namespace nested_kvm
