#pragma once

#include <napi.h>

#include <cstdint>

#include "unique_fd.h"
#include "watched.h"

namespace nested_kvm {

class ExitHub;

// JS class EventFd: an eventfd(2), for irqfd and ioeventfd, watched on the event loop.
class EventFd : public Napi::ObjectWrap<EventFd>, public Watched {
 public:
  static constexpr napi_type_tag kTypeTag = {0x1b6f0e5c6a7d4c11, 0x9d3b52c8e0f1a204};
  static Napi::Function Define(Napi::Env env);
  // The descriptor behind a JS EventFd, or -1 with an error pending that names `what`.
  static int FdOf(const Napi::Value& value, const char* what);
  explicit EventFd(const Napi::CallbackInfo& info);
  ~EventFd() = default;

  bool Deliver(Napi::Env env, uint32_t events) override;
  void Forget() override { hub_ = nullptr; }
  void Hold() override { Ref(); }
  void LetGo() override { Unref(); }

 private:
  Napi::Value Signal(const Napi::CallbackInfo& info);
  Napi::Value Read(const Napi::CallbackInfo& info);
  Napi::Value Watch(const Napi::CallbackInfo& info);
  Napi::Value Unwatch(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);
  uint64_t Drain();

  UniqueFd fd_;
  ExitHub* hub_ = nullptr;  // set while watched
  uint64_t watch_id_ = 0;
  Napi::FunctionReference on_event_;
};

}  // namespace nested_kvm
