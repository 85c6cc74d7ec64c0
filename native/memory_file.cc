#include "memory_file.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/mount.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "env_data.h"
#include "ioctl.h"
#include "mapping.h"

namespace nested_kvm {

namespace {

// A file in a tmpfs of its own, mounted nowhere, whose pages are huge where they can be: a memfd has small ones on most hosts, and a
// guest's first touch of each is an exit. Needs CAP_SYS_ADMIN and Linux 5.2; -1 where it cannot be had.
int HugeFile() {
  // By number: older C libraries have no names for them.
  UniqueFd context(static_cast<int>(::syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC)));
  if (!context) return -1;
  auto set = [&context](const char* key, const char* value) {
    return ::syscall(SYS_fsconfig, context.get(), FSCONFIG_SET_STRING, key, value, 0) == 0;
  };
  // A size of 0 is no limit; without it, it is half of the host's memory.
  if (!set("huge", "always") || !set("size", "0")) return -1;
  if (::syscall(SYS_fsconfig, context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) return -1;
  UniqueFd mount(static_cast<int>(::syscall(SYS_fsmount, context.get(), FSMOUNT_CLOEXEC, 0)));
  return mount ? ::openat(mount.get(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600) : -1;
}

}  // namespace

Napi::Function MemoryFile::Define(Napi::Env env) {
  return DefineClass(env, "MemoryFile",
                     {InstanceMethod<&MemoryFile::DataRanges>("dataRanges"), InstanceMethod<&MemoryFile::Read>("read"),
                      InstanceMethod<&MemoryFile::Write>("write"), InstanceMethod<&MemoryFile::Close>("close")});
}

// new MemoryFile(size, huge): new memory, all zero, of huge pages: 0 no, 1 where they can be had, 2 in any case, 3 of the host's pool. new MemoryFile(path): a regular file, read-only.
MemoryFile::MemoryFile(const Napi::CallbackInfo& info) : Napi::ObjectWrap<MemoryFile>(info) {
  Napi::Env env = info.Env();
  if (info[0].IsString()) {
    const std::string path = info[0].As<Napi::String>().Utf8Value();
    // Without O_NONBLOCK, opening a FIFO waits for its writer.
    fd_.Reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat status;
    if (!fd_ || ::fstat(fd_.get(), &status) < 0) {
      ThrowKvmError(env, "open of the memory file", errno);
      return;
    }
    if (!S_ISREG(status.st_mode)) {
      ThrowKvmError(env, "open of the memory file", EINVAL, "it is no regular file");
      return;
    }
  } else {
    uint64_t size = 0;
    if (!IntegerOf(info[0], "MemoryFile", uint64_t{1} << 52, &size)) return;
    uint64_t huge = 0;
    if (info[1].IsNumber() && !IntegerOf(info[1], "MemoryFile", 3, &huge)) return;
    if (huge == 3) {
      hugetlb_ = true;
      fd_.Reset(::memfd_create("nested-kvm", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB));
      if (!fd_ || ::ftruncate(fd_.get(), static_cast<off_t>(size)) < 0) {
        ThrowKvmError(env, "memfd_create of huge pages", errno);
        return;
      }
    }
    if (huge == 1 || huge == 2) fd_.Reset(HugeFile());
    if (huge == 2 && !fd_) {
      ThrowKvmError(env, "fsopen of a tmpfs with huge pages", errno);
      return;
    }
    if (!fd_) fd_.Reset(::memfd_create("nested-kvm", MFD_CLOEXEC));
    if (!fd_ || ::ftruncate(fd_.get(), static_cast<off_t>(size)) < 0) {
      ThrowKvmError(env, "memfd_create", errno);
      return;
    }
    own_ = true;
  }
  info.This().As<Napi::Object>().TypeTag(&kTypeTag);
}

uint64_t MemoryFile::Size() const {
  struct stat status;
  return fd_ && ::fstat(fd_.get(), &status) == 0 ? static_cast<uint64_t>(status.st_size) : 0;
}

// dataRanges(offset, length): [offset, length, ...] of what is no hole, ascending.
Napi::Value MemoryFile::DataRanges(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "lseek of the memory file";
  Napi::Env env = info.Env();
  uint64_t offset = 0, length = 0;
  if (!IntegerOf(info[0], kName, uint64_t{1} << 52, &offset) || !IntegerOf(info[1], kName, uint64_t{1} << 52, &length)) {
    return env.Undefined();
  }
  auto ranges = Napi::Array::New(env);
  const off_t end = static_cast<off_t>(offset + length);
  for (off_t at = static_cast<off_t>(offset); at < end;) {
    const off_t data = ::lseek(fd_.get(), at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;  // no data up to the file's end
    if (data < 0) return ThrowKvmError(env, kName, errno);
    if (data >= end) break;
    const off_t hole = ::lseek(fd_.get(), data, SEEK_HOLE);
    if (hole < 0) return ThrowKvmError(env, kName, errno);
    at = std::min(hole, end);
    ranges.Set(ranges.Length(), static_cast<double>(data));
    ranges.Set(ranges.Length(), static_cast<double>(at - data));
  }
  return ranges;
}

// Copies runs between a Memory and the file: (memory, Float64Array of [memory offset, length, file offset] for each run).
template <typename Transfer>
Napi::Value MemoryFile::Copy(const Napi::CallbackInfo& info, const char* name, Transfer transfer) {
  Napi::Env env = info.Env();
  Memory* memory = UnwrapAs<Memory>(info[0], "takes a Memory");
  if (!memory) return env.Undefined();
  const auto mapping = memory->mapping();
  if (!mapping || !fd_) return ThrowKvmError(env, name, EBADF, "this memory is closed");
  if (!info[1].IsTypedArray() || info[1].As<Napi::TypedArray>().TypedArrayType() != napi_float64_array) {
    Napi::TypeError::New(env, std::string(name) + ": takes a Float64Array of runs").ThrowAsJavaScriptException();
    return env.Undefined();
  }
  const auto runs = info[1].As<Napi::Float64Array>();
  const double* run = runs.Data();
  for (const double* const end = run + runs.ElementLength() / 3 * 3; run < end; run += 3) {
    const auto size = static_cast<double>(mapping->size());
    // Also false for what is no number.
    if (!(run[0] >= 0 && run[1] >= 0 && run[2] >= 0 && run[0] <= size && run[1] <= size - run[0] && run[2] < 0x1p52)) {
      Napi::RangeError::New(env, std::string(name) + ": a run lies outside the Memory").ThrowAsJavaScriptException();
      return env.Undefined();
    }
    uint8_t* at = mapping->address() + static_cast<size_t>(run[0]);
    auto offset = static_cast<off_t>(run[2]);
    for (auto left = static_cast<size_t>(run[1]); left > 0;) {
      const ssize_t count = transfer(fd_.get(), at, left, offset);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return ThrowKvmError(env, name, errno);
      if (count == 0) return ThrowKvmError(env, name, EIO, "the file is shorter than it was: it must not be changed while in use");
      at += count;
      offset += count;
      left -= static_cast<size_t>(count);
    }
  }
  return env.Undefined();
}

Napi::Value MemoryFile::Read(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "read of the memory file";
  if (!own_ || !fd_) return Copy(info, kName, ::pread);
  // A system call for each page costs more than its copy. Holes that this would fill are filled: the write that is undone faulted
  // the file's page in.
  if (!view_) {
    const size_t size = Size();
    void* address = ::mmap(nullptr, size, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd_.get(), 0);
    if (address == MAP_FAILED) return ThrowKvmError(info.Env(), kName, errno);
    view_ = std::make_unique<Mapping>(address, size);
  }
  return Copy(info, kName, [this](int, void* to, size_t left, off_t offset) -> ssize_t {
    const size_t at = std::min(static_cast<size_t>(offset), view_->size());
    const size_t count = std::min(left, view_->size() - at);
    std::memcpy(to, view_->address() + at, count);
    return static_cast<ssize_t>(count);
  });
}

Napi::Value MemoryFile::Write(const Napi::CallbackInfo& info) {
  return Copy(info, "write of the memory file", ::pwrite);
}

Napi::Value MemoryFile::Close(const Napi::CallbackInfo& info) {
  view_.reset();
  fd_.Reset();
  return info.Env().Undefined();
}

}  // namespace nested_kvm
