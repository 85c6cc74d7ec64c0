#pragma once

#include <napi.h>

#include <initializer_list>
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

// Calls back into JS. Returns false, with nothing in `result`, where that threw or where JS runs no more: a Worker that is
// being terminated. The wrapper classes of napi.h would end the process there, as they cannot throw either.
inline bool CallJs(Napi::Env env, const Napi::FunctionReference& function, std::initializer_list<napi_value> arguments,
                   napi_value* result = nullptr) {
  return napi_call_function(env, env.Undefined(), function.Value(), arguments.size(), arguments.begin(), result) ==
         napi_ok;
}

// `new` of a JS class, in the same way: an empty value where that threw, or where JS runs no more.
inline Napi::Value NewJs(Napi::Env env, const Napi::FunctionReference& constructor,
                         std::initializer_list<napi_value> arguments) {
  napi_value made = nullptr;
  napi_new_instance(env, constructor.Value(), arguments.size(), arguments.begin(), &made);
  return {env, made};
}

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
