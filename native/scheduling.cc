#include "scheduling.h"

#include <sched.h>

namespace nested_kvm {

namespace {
// A policy is a thread's, and so is this.
thread_local bool in_batch = false;
}  // namespace

Napi::Value SetBatch(const Napi::CallbackInfo& info) {
  const bool on = info[0].ToBoolean().Value();
  if (on != in_batch) {
    const int from = on ? SCHED_OTHER : SCHED_BATCH;
    const sched_param none{};
    const bool set = ::sched_getscheduler(0) == from && ::sched_setscheduler(0, on ? SCHED_BATCH : SCHED_OTHER, &none) == 0;
    // Whoever has changed it meanwhile keeps what they have set.
    in_batch = on && set;
  }
  return Napi::Boolean::New(info.Env(), in_batch);
}

bool InBatch() { return in_batch; }

}  // namespace nested_kvm
