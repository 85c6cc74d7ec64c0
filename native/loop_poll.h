#pragma once

#include <node_api.h>

extern "C" struct uv_poll_s;

namespace nested_kvm {

// A file descriptor that the event loop of a JS environment polls: while it is readable, `on_readable(arg)` is called on the JS thread, outside
// of any scope of N-API. Close it before the environment ends.
class LoopPoll {
 public:
  using Callback = void (*)(void* arg);

  ~LoopPoll();
  int Start(napi_env env, int fd, Callback on_readable, void* arg);  // 0 or an errno
  // Whether it keeps the loop, and so the process, alive; at first it does not.
  void KeepAlive(bool on);
  // Nothing is called after this but `closed(arg)`, once the loop has let go of it: only then may it be destroyed.
  void Close(Callback closed);

 private:
  static void OnPoll(uv_poll_s* handle, int status, int events);

  uv_poll_s* handle_ = nullptr;
  Callback on_readable_ = nullptr;
  Callback closed_ = nullptr;
  void* arg_ = nullptr;
};

}  // namespace nested_kvm
