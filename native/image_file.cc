#include "image_file.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "ioctl.h"

namespace nested_kvm {

namespace {

struct flock ByteOf(short type, uint64_t offset) {
  struct flock lock{};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(offset);
  lock.l_len = 1;
  return lock;
}

}  // namespace

Napi::Function ImageFile::Define(Napi::Env env) {
  return DefineClass(env, "ImageFile",
                     {InstanceMethod<&ImageFile::Size>("size"), InstanceMethod<&ImageFile::Lock>("lock"),
                      InstanceMethod<&ImageFile::IsLocked>("isLocked"), InstanceMethod<&ImageFile::ReadNow>("readNow"),
                      InstanceMethod<&ImageFile::PunchHole>("punchHole"), InstanceMethod<&ImageFile::Close>("close")});
}

// new ImageFile(path, writable)
ImageFile::ImageFile(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ImageFile>(info) {
  if (!info[0].IsString()) {
    Napi::TypeError::New(info.Env(), "ImageFile: takes a path").ThrowAsJavaScriptException();
    return;
  }
  const std::string path = info[0].As<Napi::String>().Utf8Value();
  const bool writable = info[1].ToBoolean().Value();
  // Without O_NONBLOCK, opening a FIFO waits for its other end.
  fd_.Reset(::open(path.c_str(), (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK));
  if (!fd_) ThrowKvmError(info.Env(), "open of the disk image", errno);
}

// size(): bytes, of a block device as well.
Napi::Value ImageFile::Size(const Napi::CallbackInfo& info) {
  const off_t size = ::lseek(fd_.get(), 0, SEEK_END);
  if (size < 0) return ThrowKvmError(info.Env(), "lseek of the disk image", errno);
  return Napi::Number::New(info.Env(), static_cast<double>(size));
}

// lock(offset): a shared lock of one byte, until close(). False where another has it exclusively.
Napi::Value ImageFile::Lock(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "F_OFD_SETLK of the disk image";
  Napi::Env env = info.Env();
  uint64_t offset = 0;
  if (!IntegerOf(info[0], kName, uint64_t{1} << 52, &offset)) return env.Undefined();
  struct flock lock = ByteOf(F_RDLCK, offset);
  if (::fcntl(fd_.get(), F_OFD_SETLK, &lock) == 0) return Napi::Boolean::New(env, true);
  if (errno == EAGAIN || errno == EACCES) return Napi::Boolean::New(env, false);
  return ThrowKvmError(env, kName, errno);
}

// isLocked(offset): whether another open file description has a lock of that byte.
Napi::Value ImageFile::IsLocked(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "F_OFD_GETLK of the disk image";
  Napi::Env env = info.Env();
  uint64_t offset = 0;
  if (!IntegerOf(info[0], kName, uint64_t{1} << 52, &offset)) return env.Undefined();
  struct flock lock = ByteOf(F_WRLCK, offset);
  if (::fcntl(fd_.get(), F_OFD_GETLK, &lock) < 0) return ThrowKvmError(env, kName, errno);
  return Napi::Boolean::New(env, lock.l_type != F_UNLCK);
}

// readNow(buffers, offset, mayWait): bytes that were read into the buffers, as many as are in the host's memory; or -errno where none
// could be, EAGAIN where it takes a wait. `mayWait`: no such bound, for a file system that is the host's memory and knows none.
Napi::Value ImageFile::ReadNow(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "preadv2 of the disk image";
  Napi::Env env = info.Env();
  uint64_t offset = 0;
  if (!IntegerOf(info[1], kName, uint64_t{1} << 52, &offset)) return env.Undefined();
  if (!info[0].IsArray()) {
    Napi::TypeError::New(env, std::string(kName) + ": takes a list of buffers").ThrowAsJavaScriptException();
    return env.Undefined();
  }
  const auto list = info[0].As<Napi::Array>();
  iov_.clear();
  for (uint32_t i = 0, count = list.Length(); i < count; i++) {
    const auto bytes = BytesOf(list.Get(i), kName);
    if (bytes.data() == nullptr) return env.Undefined();
    iov_.push_back({bytes.data(), bytes.size()});
  }
  const int flags = info[2].ToBoolean().Value() ? 0 : RWF_NOWAIT;
  const ssize_t count =
      ::preadv2(fd_.get(), iov_.data(), static_cast<int>(iov_.size()), static_cast<off_t>(offset), flags);
  return Napi::Number::New(env, static_cast<double>(count < 0 ? -errno : count));
}

// punchHole(offset, length): the range reads as zeros and takes no room.
Napi::Value ImageFile::PunchHole(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "fallocate of the disk image";
  Napi::Env env = info.Env();
  uint64_t range[2] = {};
  if (!IntegerOf(info[0], kName, uint64_t{1} << 52, &range[0]) || !IntegerOf(info[1], kName, uint64_t{1} << 52, &range[1])) {
    return env.Undefined();
  }
  // A block device takes this as well, since Linux 4.9.
  if (::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(range[0]),
                  static_cast<off_t>(range[1])) < 0) {
    return ThrowKvmError(env, kName, errno);
  }
  return env.Undefined();
}

Napi::Value ImageFile::Close(const Napi::CallbackInfo& info) {
  fd_.Reset();
  return info.Env().Undefined();
}

}  // namespace nested_kvm
