#include "mapping.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <vector>

#include "env_data.h"
#include "ioctl.h"
#include "memory_file.h"

namespace nested_kvm {

namespace {
// fs.read and older V8s take no more than this at once.
constexpr size_t kChunk = size_t{1} << 31;
constexpr uint64_t kPage = 4096;
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
                     {InstanceMethod<&Memory::Buffers>("buffers"), InstanceMethod<&Memory::Map>("map"),
                      InstanceMethod<&Memory::Share>("share"),
                      InstanceMethod<&Memory::ResidentRanges>("residentRanges"), InstanceMethod<&Memory::Close>("close")});
}

// new Memory(size): anonymous. new Memory(size, file): the content of `file`, shared with it.
Memory::Memory(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Memory>(info) {
  uint64_t size = 0;
  if (!IntegerOf(info[0], "Memory", uint64_t{1} << 52, &size)) return;
  const char* name = "mmap";
  int fd = -1;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  if (info[1].IsObject()) {
    MemoryFile* file = UnwrapAs<MemoryFile>(info[1], "Memory: takes a MemoryFile");
    if (!file) return;
    fd = file->fd();
    // Huge pages of the pool are reserved now: where there is none at a page's first use, that is a SIGBUS.
    flags = file->hugetlb() ? MAP_SHARED : MAP_SHARED | MAP_NORESERVE;
    if (file->hugetlb()) name = "mmap of huge pages";
  }
  void* address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (address == MAP_FAILED) {
    ThrowKvmError(info.Env(), name, errno);
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

// map(offset, length, file, fileOffset): from now on that part of the memory has the content of `file`, copied on write. The
// address stays, and with it every memslot and view.
Napi::Value Memory::Map(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "mmap of the memory file";
  Napi::Env env = info.Env();
  uint64_t offset = 0, length = 0, file_offset = 0;
  if (!IntegerOf(info[0], kName, uint64_t{1} << 52, &offset) || !IntegerOf(info[1], kName, uint64_t{1} << 52, &length)) {
    return env.Undefined();
  }
  MemoryFile* file = UnwrapAs<MemoryFile>(info[2], "Memory: takes a MemoryFile");
  if (!file || !IntegerOf(info[3], kName, uint64_t{1} << 52, &file_offset)) return env.Undefined();
  if (!mapping_) return ThrowKvmError(env, kName, EBADF, "this Memory is closed");
  if (length == 0 || offset % kPage != 0 || length % kPage != 0 || file_offset % kPage != 0 ||
      offset > mapping_->size() || length > mapping_->size() - offset) {
    Napi::RangeError::New(env, std::string(kName) + ": not whole pages of the Memory").ThrowAsJavaScriptException();
    return env.Undefined();
  }
  // A page behind the file's end would be a SIGBUS on its first use.
  if (file_offset + length > file->Size()) return ThrowKvmError(env, kName, EIO, "the file is too short");
  void* address = ::mmap(mapping_->address() + offset, length, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, file->fd(), static_cast<off_t>(file_offset));
  if (address == MAP_FAILED) return ThrowKvmError(env, kName, errno);
  return env.Undefined();
}

// share(file): from now on all of the memory is the content of `file`, shared with it. The address stays, as with map().
Napi::Value Memory::Share(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "mmap of the memory file";
  Napi::Env env = info.Env();
  MemoryFile* file = UnwrapAs<MemoryFile>(info[0], "Memory: takes a MemoryFile");
  if (!file) return env.Undefined();
  if (!mapping_) return ThrowKvmError(env, kName, EBADF, "this Memory is closed");
  if (mapping_->size() > file->Size()) return ThrowKvmError(env, kName, EIO, "the file is too short");
  void* address = ::mmap(mapping_->address(), mapping_->size(), PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_FIXED | MAP_NORESERVE, file->fd(), 0);
  if (address == MAP_FAILED) return ThrowKvmError(env, kName, errno);
  return env.Undefined();
}

// residentRanges(): [offset, length, ...] of the pages that are there, ascending. What is never swapped out is all zero elsewhere.
Napi::Value Memory::ResidentRanges(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "mincore";
  Napi::Env env = info.Env();
  if (!mapping_) return ThrowKvmError(env, kName, EBADF, "this Memory is closed");
  auto ranges = Napi::Array::New(env);
  std::vector<unsigned char> resident(kChunk / kPage);
  size_t start = 0;
  bool within = false;
  auto end_at = [&](size_t end) {
    ranges.Set(ranges.Length(), static_cast<double>(start));
    ranges.Set(ranges.Length(), static_cast<double>(end - start));
  };
  for (size_t offset = 0; offset < mapping_->size(); offset += kChunk) {
    const size_t length = std::min(kChunk, mapping_->size() - offset);
    if (::mincore(mapping_->address() + offset, length, resident.data()) < 0) return ThrowKvmError(env, kName, errno);
    for (size_t page = 0; page * kPage < length; page++) {
      if (((resident[page] & 1) != 0) == within) continue;
      const size_t at = offset + page * kPage;
      if (within) end_at(at);
      start = at;
      within = !within;
    }
  }
  if (within) end_at(mapping_->size());
  return ranges;
}

Napi::Value Memory::Close(const Napi::CallbackInfo& info) {
  views_.Detach(info.Env());
  mapping_.reset();
  return info.Env().Undefined();
}

}  // namespace nested_kvm
