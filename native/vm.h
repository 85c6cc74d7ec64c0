#pragma once

#include <napi.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>

#include "kvm_uapi.h"
#include "mapping.h"
#include "unique_fd.h"

namespace nested_kvm {

// A register of 32 bits that the guest reads at one address, and whose bits it clears by writing ones at another: an interrupt status.
// The vCPU's own thread answers, so that an interrupt costs no wake-up of the event loop.
struct StatusWord {
  uint64_t read_address, clear_address;
  std::shared_ptr<Mapping> memory;
  uint32_t* word;
};

// The VM as its vCPUs need it: they keep it, and through it the guest's memory, alive while they may run.
struct VmCore {
  struct Slot {
    std::shared_ptr<Mapping> memory;
    uint64_t size;
  };
  UniqueFd fd;
  size_t vcpu_mmap_size;
  std::map<uint32_t, Slot> slots;
  // Only added to: what the count covers, vCPU threads may read.
  std::array<StatusWord, 64> status_words;
  std::atomic<uint32_t> status_word_count{0};

  // Any thread: answers an access to a status word. False where it is to something else.
  bool AnswerStatusWord(kvm_run* run) const;
};

// JS class Vm: a VM file descriptor.
class Vm : public Napi::ObjectWrap<Vm> {
 public:
  static constexpr napi_type_tag kTypeTag = {0x1b6f0e5c6a7d4c11, 0x9d3b52c8e0f1a202};
  static Napi::Function Define(Napi::Env env);
  static Napi::Value Create(Napi::Env env, UniqueFd fd, size_t vcpu_mmap_size);
  explicit Vm(const Napi::CallbackInfo& info);

 private:
  Napi::Value Call(const Napi::CallbackInfo& info);
  Napi::Value CreateVcpu(const Napi::CallbackInfo& info);
  Napi::Value SetUserMemoryRegion(const Napi::CallbackInfo& info);
  Napi::Value GetDirtyLog(const Napi::CallbackInfo& info);
  Napi::Value ClearDirtyLog(const Napi::CallbackInfo& info);
  Napi::Value EnableCap(const Napi::CallbackInfo& info);
  Napi::Value Irqfd(const Napi::CallbackInfo& info);
  Napi::Value Ioeventfd(const Napi::CallbackInfo& info);
  Napi::Value AddStatusWord(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  // The open core, or nullptr with a KvmError pending that names the ioctl.
  VmCore* Open(Napi::Env env, const char* name);

  std::shared_ptr<VmCore> core_;
};

}  // namespace nested_kvm
