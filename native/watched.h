#pragma once

#include <napi.h>

#include <cstdint>

namespace nested_kvm {

// A JS object whose file descriptor the hub watches.
class Watched {
 public:
  // JS thread: `events` of epoll(7) came. Returns false when JS threw.
  virtual bool Deliver(Napi::Env env, uint32_t events) = 0;
  // The environment ends, and the hub with it.
  virtual void Forget() = 0;
  // While it is watched, it is not collected as garbage.
  virtual void Hold() = 0;
  virtual void LetGo() = 0;

 protected:
  ~Watched() = default;
};

}  // namespace nested_kvm
