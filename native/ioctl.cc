#include "ioctl.h"

#include <sys/ioctl.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <string>

#include "env_data.h"

namespace nested_kvm {

namespace {

constexpr size_t kNestedStateHeader = 128;

uint32_t LoadU32(const uint8_t* at) {
  uint32_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

bool Throw(Napi::Env env, const Op& op, const std::string& what) {
  Napi::RangeError::New(env, std::string(op.name) + ": " + what).ThrowAsJavaScriptException();
  return false;
}

bool FitsOp(Napi::Env env, const Op& op, std::span<const uint8_t> bytes) {
  switch (op.argument) {
    case Argument::kStruct: {
      const size_t size = _IOC_SIZE(op.request);
      if (bytes.size() == size) return true;
      return Throw(env, op, "takes " + std::to_string(size) + " bytes, not " + std::to_string(bytes.size()));
    }
    case Argument::kList: {
      if (bytes.size() < op.header) return Throw(env, op, "the buffer is shorter than its header");
      const uint64_t need = op.header + uint64_t{LoadU32(bytes.data())} * op.element;
      if (need <= bytes.size()) return true;
      return Throw(env, op, "the count in the header asks for " + std::to_string(need) + " bytes, the buffer has " +
                                std::to_string(bytes.size()));
    }
    case Argument::kNestedState:
      if (bytes.size() < kNestedStateHeader) return Throw(env, op, "the buffer is shorter than the 128-byte header");
      if (LoadU32(bytes.data() + 4) <= bytes.size()) return true;
      return Throw(env, op, "`size` in the header is larger than the buffer");
    default:
      return true;
  }
}

}  // namespace

Napi::Value ThrowKvmError(Napi::Env env, const char* name, int error, const char* remedy) {
  // Without a remedy the class looks for one by name and code.
  const napi_value advice = remedy ? napi_value{Napi::String::New(env, remedy)} : napi_value{env.Undefined()};
  Napi::Value thrown =
      NewJs(env, EnvData::Of(env)->kvm_error, {Napi::String::New(env, name), Napi::Number::New(env, error), advice});
  if (!thrown.IsEmpty()) napi_throw(env, thrown);
  return env.Undefined();
}

std::span<uint8_t> BytesOf(const Napi::Value& value, const char* what) {
  napi_typedarray_type type = napi_int8_array;
  napi_value buffer = nullptr;
  void* data = nullptr;
  size_t length = 0;
  bool plain = false;
  if (napi_get_typedarray_info(value.Env(), value, &type, &length, &data, &buffer, nullptr) == napi_ok && type == napi_uint8_array) {
    napi_is_arraybuffer(value.Env(), buffer, &plain);
    if (plain && data != nullptr) return {static_cast<uint8_t*>(data), length};
  }
  Napi::TypeError::New(value.Env(), std::string(what) + ": takes a Uint8Array over an ArrayBuffer that is not shared")
      .ThrowAsJavaScriptException();
  return {};
}

bool IntegerOf(const Napi::Value& value, const char* what, uint64_t max, uint64_t* out) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : NAN;
  if (number >= 0 && number <= static_cast<double>(max) && number == std::floor(number) && number < 9007199254740992.0) {
    *out = static_cast<uint64_t>(number);
    return true;
  }
  // What else it is goes unsaid: turning it into text may call JS, and throw.
  const std::string given = std::isnan(number) ? "" : ", not " + std::to_string(number);
  Napi::RangeError::New(value.Env(), std::string(what) + ": takes an integer from 0 to " + std::to_string(max) + given)
      .ThrowAsJavaScriptException();
  return false;
}

Napi::Value CallOp(const Napi::CallbackInfo& info, int fd, const Op& op) {
  Napi::Env env = info.Env();
  unsigned long argument = 0;
  if (op.argument == Argument::kValue) {
    uint64_t value = 0;
    if (!IntegerOf(info[0], op.name, UINT64_MAX, &value)) return env.Undefined();
    argument = value;
  } else if (op.argument != Argument::kNone) {
    auto bytes = BytesOf(info[0], op.name);
    if (bytes.data() == nullptr || !FitsOp(env, op, bytes)) return env.Undefined();
    argument = reinterpret_cast<unsigned long>(bytes.data());
  }
  int result;
  do {
    result = ::ioctl(fd, op.request, argument);
  } while (result < 0 && errno == EINTR);
  if (result < 0) return ThrowKvmError(env, op.name, errno);
  return Napi::Number::New(env, result);
}

}  // namespace nested_kvm
