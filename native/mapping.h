#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace nested_kvm {

// One mmap, unmapped when its last owner lets go: a memslot, a vCPU or a JS view.
class Mapping {
 public:
  Mapping(void* address, size_t size) : address_(static_cast<uint8_t*>(address)), size_(size) {}
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  uint8_t* address() const { return address_; }
  size_t size() const { return size_; }

 private:
  uint8_t* address_;
  size_t size_;
};

// The ArrayBuffers that JS holds over a mapping. They keep it alive; Detach() takes it away from them at once.
class Views {
 public:
  ~Views() = default;
  Napi::ArrayBuffer Add(Napi::Env env, const std::shared_ptr<Mapping>& mapping, size_t offset, size_t length);
  void Detach(Napi::Env env);

 private:
  struct Holder {
    std::shared_ptr<Mapping> mapping;
  };
  struct View {
    Napi::Reference<Napi::ArrayBuffer> buffer;
    std::shared_ptr<Holder> holder;
  };
  std::vector<View> views_;
};

// JS class Memory: memory for a guest, anonymous or made of files.
class Memory : public Napi::ObjectWrap<Memory> {
 public:
  static constexpr napi_type_tag kTypeTag = {0x1b6f0e5c6a7d4c11, 0x9d3b52c8e0f1a201};
  static Napi::Function Define(Napi::Env env);
  explicit Memory(const Napi::CallbackInfo& info);

  const std::shared_ptr<Mapping>& mapping() const { return mapping_; }

 private:
  Napi::Value Buffers(const Napi::CallbackInfo& info);
  Napi::Value Map(const Napi::CallbackInfo& info);
  Napi::Value Share(const Napi::CallbackInfo& info);
  Napi::Value ResidentRanges(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  std::shared_ptr<Mapping> mapping_;
  Views views_;
};

}  // namespace nested_kvm
