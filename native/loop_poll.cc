#include "loop_poll.h"

#include <cerrno>
#include <cstdlib>

// What is used of libuv, which Node exports. Its header is not among N-API's, and nothing may be downloaded to build this; within libuv 1, the
// only one that Node has had, these and the two numbers do not change.
extern "C" {
struct uv_handle_s;
struct uv_poll_s;
size_t uv_handle_size(int type);
void* uv_handle_get_data(const uv_handle_s* handle);
void uv_handle_set_data(uv_handle_s* handle, void* data);
void uv_ref(uv_handle_s* handle);
void uv_unref(uv_handle_s* handle);
void uv_close(uv_handle_s* handle, void (*closed)(uv_handle_s*));
int uv_poll_init(uv_loop_s* loop, uv_poll_s* handle, int fd);
int uv_poll_start(uv_poll_s* handle, int events, void (*callback)(uv_poll_s*, int, int));
int uv_poll_stop(uv_poll_s* handle);
}

namespace nested_kvm {

namespace {

constexpr int kPoll = 8;      // UV_POLL
constexpr int kReadable = 1;  // UV_READABLE

uv_handle_s* Handle(uv_poll_s* poll) { return reinterpret_cast<uv_handle_s*>(poll); }

}  // namespace

LoopPoll::~LoopPoll() { std::free(handle_); }

int LoopPoll::Start(napi_env env, int fd, Callback on_readable, void* arg) {
  uv_loop_s* loop = nullptr;
  if (napi_get_uv_event_loop(env, &loop) != napi_ok) return ENOTSUP;
  handle_ = static_cast<uv_poll_s*>(std::malloc(uv_handle_size(kPoll)));
  if (!handle_) return ENOMEM;
  if (int error = uv_poll_init(loop, handle_, fd); error != 0) {
    std::free(handle_);
    handle_ = nullptr;
    return -error;
  }
  on_readable_ = on_readable;
  arg_ = arg;
  uv_handle_set_data(Handle(handle_), this);
  uv_unref(Handle(handle_));
  uv_poll_start(handle_, kReadable, &LoopPoll::OnPoll);
  return 0;
}

void LoopPoll::KeepAlive(bool on) { on ? uv_ref(Handle(handle_)) : uv_unref(Handle(handle_)); }

void LoopPoll::Close(Callback closed) {
  closed_ = closed;
  uv_poll_stop(handle_);
  uv_close(Handle(handle_), [](uv_handle_s* handle) {
    auto* self = static_cast<LoopPoll*>(uv_handle_get_data(handle));
    self->closed_(self->arg_);
  });
}

void LoopPoll::OnPoll(uv_poll_s* handle, int, int) {
  auto* self = static_cast<LoopPoll*>(uv_handle_get_data(Handle(handle)));
  self->on_readable_(self->arg_);
}

}  // namespace nested_kvm
