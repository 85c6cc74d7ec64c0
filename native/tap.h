#pragma once

#include <napi.h>
#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <vector>

#include "unique_fd.h"
#include "watched.h"

namespace nested_kvm {

class ExitHub;

// JS class Tap: a tap interface of the host (Linux: Documentation/networking/tuntap.rst), whose frames begin with a virtio_net_hdr_v1
// and go straight between the kernel and guest memory.
class Tap : public Napi::ObjectWrap<Tap>, public Watched {
 public:
  static constexpr napi_type_tag kTypeTag = {0x1b6f0e5c6a7d4c11, 0x9d3b52c8e0f1a206};
  static Napi::Function Define(Napi::Env env);
  explicit Tap(const Napi::CallbackInfo& info);
  ~Tap() = default;

  bool Deliver(Napi::Env env, uint32_t events) override;
  void Forget() override { hub_ = nullptr; }
  void Hold() override { Ref(); }
  void LetGo() override { Unref(); }

 private:
  // Where frames come from or go to, during one call: buffer i has counts[i] of the runs, each a view, an offset in it and a length.
  struct Buffers {
    std::vector<std::span<uint8_t>> views;
    std::span<const double> runs;
    std::span<const uint32_t> counts;
  };

  Napi::Value Name(const Napi::CallbackInfo& info);
  Napi::Value SetOffload(const Napi::CallbackInfo& info);
  Napi::Value IsUp(const Napi::CallbackInfo& info);
  Napi::Value Up(const Napi::CallbackInfo& info);
  Napi::Value SetAddress(const Napi::CallbackInfo& info);
  Napi::Value JoinBridge(const Napi::CallbackInfo& info);
  Napi::Value UseViews(const Napi::CallbackInfo& info);
  Napi::Value Read(const Napi::CallbackInfo& info);
  Napi::Value Drop(const Napi::CallbackInfo& info);
  Napi::Value Write(const Napi::CallbackInfo& info);
  Napi::Value Watch(const Napi::CallbackInfo& info);
  Napi::Value Arm(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  bool Check(Napi::Env env, const char* what) const;
  bool BuffersOf(const Napi::CallbackInfo& info, const char* what, Buffers* out) const;
  bool AddRun(Napi::Env env, const char* what, const Buffers& buffers, size_t run);
  ssize_t Receive(size_t capacity);
  void Unwatch();

  UniqueFd fd_;
  char name_[16] = {};
  std::vector<Napi::Reference<Napi::Uint8Array>> views_;
  std::vector<iovec> iov_;      // of the call that is being made
  std::vector<uint8_t> spill_;  // what a frame has beyond the buffers offered
  std::vector<uint8_t> held_;   // a frame that did not fit; empty where there is none
  ExitHub* hub_ = nullptr;      // set while watched
  uint64_t watch_id_ = 0;
  Napi::FunctionReference on_event_;
};

}  // namespace nested_kvm
