#pragma once

#include <napi.h>

#include <memory>

namespace nested_kvm {

class ExitHub;

// What one JS environment (the main thread, or a Worker) owns. Nothing in the addon is global.
struct EnvData {
  Napi::FunctionReference kvm_error;
  Napi::FunctionReference vm;
  Napi::FunctionReference vcpu;
  ExitHub* hub = nullptr;  // made on first use, freed by its own cleanup hook

  static EnvData* Of(Napi::Env env) { return env.GetInstanceData<EnvData>(); }
};

// Unwraps `value` if it is an object that our class T made; throws TypeError in JS and returns nullptr otherwise.
// The tag is what makes this safe: a prototype can be forged, a tag cannot.
template <typename T>
T* UnwrapAs(const Napi::Value& value, const char* what) {
  if (value.IsObject()) {
    auto object = value.As<Napi::Object>();
    if (object.CheckTypeTag(&T::kTypeTag)) return T::Unwrap(object);
  }
  Napi::TypeError::New(value.Env(), what).ThrowAsJavaScriptException();
  return nullptr;
}

}  // namespace nested_kvm
