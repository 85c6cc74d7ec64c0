#pragma once

#include <napi.h>

namespace nested_kvm {

// setBatch(on): while on, the calling JS thread takes a busy processor from no other thread when it wakes up, but waits until that one
// sleeps or has had its turn (SCHED_BATCH, sched(7)). Gives whether it is so now: a thread that is no plain SCHED_OTHER is left as it is.
Napi::Value SetBatch(const Napi::CallbackInfo& info);

// Whether the calling JS thread is SCHED_BATCH by SetBatch: what it starts should not be.
bool InBatch();

}  // namespace nested_kvm
