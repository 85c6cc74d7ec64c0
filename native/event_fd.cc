#include "event_fd.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <cerrno>

#include "env_data.h"
#include "exit_hub.h"
#include "ioctl.h"

namespace nested_kvm {

Napi::Function EventFd::Define(Napi::Env env) {
  return DefineClass(env, "EventFd",
                     {InstanceMethod<&EventFd::Signal>("signal"), InstanceMethod<&EventFd::Read>("read"),
                      InstanceMethod<&EventFd::Watch>("watch"), InstanceMethod<&EventFd::Unwatch>("unwatch"),
                      InstanceMethod<&EventFd::Close>("close")});
}

EventFd::EventFd(const Napi::CallbackInfo& info) : Napi::ObjectWrap<EventFd>(info) {
  fd_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd_) {
    ThrowKvmError(info.Env(), "eventfd", errno);
    return;
  }
  info.This().As<Napi::Object>().TypeTag(&kTypeTag);
}

int EventFd::FdOf(const Napi::Value& value, const char* what) {
  EventFd* event_fd = UnwrapAs<EventFd>(value, "takes an EventFd");
  if (!event_fd) return -1;
  if (!event_fd->fd_) ThrowKvmError(value.Env(), what, EBADF, "this EventFd is closed");
  return event_fd->fd_.get();
}

uint64_t EventFd::Drain() {
  eventfd_t count = 0;
  if (!fd_ || ::eventfd_read(fd_.get(), &count) < 0) return 0;
  return count;
}

bool EventFd::Deliver(Napi::Env env, uint32_t) {
  const uint64_t count = Drain();
  if (count == 0) return true;
  Napi::HandleScope scope(env);
  return CallJs(env, on_event_, {Napi::Number::New(env, static_cast<double>(count))});
}

// signal(count): adds to the counter.
Napi::Value EventFd::Signal(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint64_t count = 0;
  if (!fd_) return ThrowKvmError(env, "eventfd", EBADF, "this EventFd is closed");
  if (!IntegerOf(info[0], "eventfd", UINT32_MAX, &count)) return env.Undefined();
  if (::eventfd_write(fd_.get(), count) < 0) return ThrowKvmError(env, "eventfd", errno);
  return env.Undefined();
}

// The counter, set back to 0; 0 where nothing was signalled.
Napi::Value EventFd::Read(const Napi::CallbackInfo& info) {
  if (!fd_) return ThrowKvmError(info.Env(), "eventfd", EBADF, "this EventFd is closed");
  return Napi::Number::New(info.Env(), static_cast<double>(Drain()));
}

Napi::Value EventFd::Watch(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!fd_) return ThrowKvmError(env, "eventfd", EBADF, "this EventFd is closed");
  if (!info[0].IsFunction()) {
    Napi::TypeError::New(env, "eventfd: takes a callback").ThrowAsJavaScriptException();
    return env.Undefined();
  }
  on_event_ = Napi::Persistent(info[0].As<Napi::Function>());
  if (hub_) return env.Undefined();
  ExitHub* hub = ExitHub::Of(env);
  if (!hub) return env.Undefined();
  // Edge-triggered: one event a write, with nothing to re-arm.
  if (int error = hub->Watch(this, fd_.get(), EPOLLIN | EPOLLET, &watch_id_); error != 0) return ThrowKvmError(env, "epoll", error);
  hub_ = hub;
  return env.Undefined();
}

Napi::Value EventFd::Unwatch(const Napi::CallbackInfo& info) {
  if (hub_) hub_->Unwatch(watch_id_, fd_.get());
  hub_ = nullptr;
  on_event_.Reset();
  return info.Env().Undefined();
}

Napi::Value EventFd::Close(const Napi::CallbackInfo& info) {
  Unwatch(info);
  fd_.Reset();
  return info.Env().Undefined();
}

}  // namespace nested_kvm
