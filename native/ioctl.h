#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace nested_kvm {

// What an ioctl takes, and so what is checked before the kernel sees it.
enum class Argument : uint8_t {
  kNone,         // nothing
  kValue,        // a number
  kStruct,       // a struct whose size is the one in the request
  kList,         // a header with a u32 count at 0, then that many elements
  kNestedState,  // struct kvm_nested_state: its u32 `size` at 4 covers header and data
};

// One ioctl as a JS method.
struct Op {
  const char* method;
  const char* name;
  unsigned long request;
  Argument argument = Argument::kStruct;
  uint16_t header = 0;   // kList: bytes before the elements
  uint16_t element = 0;  // kList: bytes of one
};

#define NESTED_KVM_OP(method, request, ...) \
  ::nested_kvm::Op { method, #request, request __VA_OPT__(, ) __VA_ARGS__ }

// Throws KvmError(name, error, remedy) in JS; returns undefined.
Napi::Value ThrowKvmError(Napi::Env env, const char* name, int error, const char* remedy = nullptr);

// The bytes of a Uint8Array argument. Throws TypeError in JS, and returns no data, where it is not one, or
// where its memory is shared: another thread could change a count between our check and the kernel's read.
std::span<uint8_t> BytesOf(const Napi::Value& value, const char* what);

// Checks the argument against the op and makes the ioctl. Returns its result as a number, or throws.
Napi::Value CallOp(const Napi::CallbackInfo& info, int fd, const Op& op);

// A number argument that is an integer in [0, max]. Throws TypeError/RangeError in JS and returns false otherwise.
bool IntegerOf(const Napi::Value& value, const char* what, uint64_t max, uint64_t* out);

}  // namespace nested_kvm
