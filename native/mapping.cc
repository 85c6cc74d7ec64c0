#include "mapping.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

#include "ioctl.h"

namespace nested_kvm {

namespace {
// fs.read and older V8s take no more than this at once.
constexpr size_t kChunk = size_t{1} << 31;
}  // namespace

Mapping::~Mapping() { ::munmap(address_, size_); }

Napi::ArrayBuffer Views::Add(Napi::Env env, const std::shared_ptr<Mapping>& mapping, size_t offset, size_t length) {
  auto holder = std::make_shared<Holder>(Holder{mapping});
  auto buffer = Napi::ArrayBuffer::New(
      env, mapping->address() + offset, length,
      [](Napi::Env, void*, std::shared_ptr<Holder>* hint) { delete hint; }, new std::shared_ptr<Holder>(holder));
  views_.push_back({Napi::Reference<Napi::ArrayBuffer>::New(buffer, 1), holder});
  return buffer;
}

void Views::Detach(Napi::Env env) {
  Napi::HandleScope scope(env);
  for (auto& view : views_) {
    view.buffer.Value().Detach();
    // V8 calls the buffer's finalizer later; nothing can reach the memory any more, so it goes now.
    view.holder->mapping.reset();
  }
  views_.clear();
}

Napi::Function Memory::Define(Napi::Env env) {
  return DefineClass(env, "Memory",
                     {InstanceMethod<&Memory::Buffers>("buffers"), InstanceMethod<&Memory::Close>("close")});
}

Memory::Memory(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Memory>(info) {
  uint64_t size = 0;
  if (!IntegerOf(info[0], "Memory", uint64_t{1} << 52, &size)) return;
  void* address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) {
    ThrowKvmError(info.Env(), "mmap", errno);
    return;
  }
  mapping_ = std::make_shared<Mapping>(address, size);
  info.This().As<Napi::Object>().TypeTag(&kTypeTag);
}

Napi::Value Memory::Buffers(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto buffers = Napi::Array::New(env);
  if (!mapping_) return buffers;
  views_.Detach(env);
  for (size_t offset = 0; offset < mapping_->size(); offset += kChunk) {
    buffers.Set(buffers.Length(), views_.Add(env, mapping_, offset, std::min(kChunk, mapping_->size() - offset)));
  }
  return buffers;
}

Napi::Value Memory::Close(const Napi::CallbackInfo& info) {
  views_.Detach(info.Env());
  mapping_.reset();
  return info.Env().Undefined();
}

}  // namespace nested_kvm
