#include "tap.h"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_arp.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <string>

#include "env_data.h"
#include "exit_hub.h"
#include "ioctl.h"

namespace nested_kvm {

namespace {

// struct virtio_net_hdr_v1 (virtio 1.2, 5.1.6).
constexpr int kHeader = 12;
// The largest IP packet, with the headers of Ethernet, of a VLAN in a VLAN, and ours.
constexpr size_t kMaxFrame = 65535 + 14 + 8 + kHeader;

Napi::Value ThrowRange(Napi::Env env, const char* what, const char* problem) {
  Napi::RangeError::New(env, std::string(what) + ": " + problem).ThrowAsJavaScriptException();
  return env.Undefined();
}

template <typename T>
bool ArrayOf(const Napi::Value& value, const char* what, napi_typedarray_type wanted, std::span<T>* out) {
  napi_typedarray_type type = napi_int8_array;
  size_t length = 0;
  void* data = nullptr;
  if (napi_get_typedarray_info(value.Env(), value, &type, &length, &data, nullptr, nullptr) != napi_ok || type != wanted) {
    Napi::TypeError::New(value.Env(), std::string(what) + ": takes typed arrays").ThrowAsJavaScriptException();
    return false;
  }
  *out = {static_cast<T*>(data), data ? length : 0};
  return true;
}

// An ioctl on a network interface (netdevice(7)). Returns 0 or an errno.
int InterfaceIoctl(unsigned long request, ifreq* ifr) {
  UniqueFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  return socket && ::ioctl(socket.get(), request, ifr) == 0 ? 0 : errno;
}

void SetName(ifreq* ifr, const char* name) { std::memcpy(ifr->ifr_name, name, std::min<size_t>(std::strlen(name), IFNAMSIZ - 1)); }

}  // namespace

Napi::Function Tap::Define(Napi::Env env) {
  return DefineClass(
      env, "Tap",
      {InstanceMethod<&Tap::Name>("name"), InstanceMethod<&Tap::SetOffload>("setOffload"), InstanceMethod<&Tap::IsUp>("isUp"),
       InstanceMethod<&Tap::Up>("up"), InstanceMethod<&Tap::SetAddress>("setAddress"),
       InstanceMethod<&Tap::JoinBridge>("joinBridge"),
       InstanceMethod<&Tap::UseViews>("useViews"), InstanceMethod<&Tap::Read>("read"), InstanceMethod<&Tap::Drop>("drop"),
       InstanceMethod<&Tap::Write>("write"), InstanceMethod<&Tap::Watch>("watch"), InstanceMethod<&Tap::Arm>("arm"),
       InstanceMethod<&Tap::Close>("close")});
}

// new Tap(name): the tap of that name, made where there is none; `%d` in it stands for the lowest free number.
Tap::Tap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Tap>(info) {
  Napi::Env env = info.Env();
  const std::string name = info[0].IsString() ? info[0].As<Napi::String>().Utf8Value() : "";
  if (name.empty() || name.size() >= IFNAMSIZ || name.find('\0') != std::string::npos) {
    ThrowRange(env, "Tap", "a name has 1 to 15 characters");
    return;
  }
  UniqueFd fd(::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (!fd) {
    ThrowKvmError(env, "open /dev/net/tun", errno);
    return;
  }
  ifreq ifr{};
  SetName(&ifr, name.c_str());
  ifr.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
  if (::ioctl(fd.get(), TUNSETIFF, &ifr) < 0) {
    ThrowKvmError(env, "TUNSETIFF", errno);
    return;
  }
  int header = kHeader;
  if (::ioctl(fd.get(), TUNSETVNETHDRSZ, &header) < 0) {
    ThrowKvmError(env, "TUNSETVNETHDRSZ", errno);
    return;
  }
  std::memcpy(name_, ifr.ifr_name, sizeof name_ - 1);
  fd_ = std::move(fd);
  spill_.resize(kMaxFrame);
  info.This().As<Napi::Object>().TypeTag(&kTypeTag);
}

bool Tap::Check(Napi::Env env, const char* what) const {
  if (!fd_) ThrowKvmError(env, what, EBADF, "this Tap is closed");
  return static_cast<bool>(fd_);
}

// The name that it has.
Napi::Value Tap::Name(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), name_); }

// setOffload(flags): TUN_F_*, what may be left undone in frames that are read.
Napi::Value Tap::SetOffload(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint64_t flags = 0;
  if (!Check(env, "TUNSETOFFLOAD") || !IntegerOf(info[0], "TUNSETOFFLOAD", UINT32_MAX, &flags)) return env.Undefined();
  if (::ioctl(fd_.get(), TUNSETOFFLOAD, static_cast<unsigned long>(flags)) < 0) return ThrowKvmError(env, "TUNSETOFFLOAD", errno);
  return env.Undefined();
}

Napi::Value Tap::IsUp(const Napi::CallbackInfo& info) {
  ifreq ifr{};
  SetName(&ifr, name_);
  if (int error = InterfaceIoctl(SIOCGIFFLAGS, &ifr); error != 0) return ThrowKvmError(info.Env(), "SIOCGIFFLAGS", error);
  return Napi::Boolean::New(info.Env(), (ifr.ifr_flags & IFF_UP) != 0);
}

Napi::Value Tap::Up(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  ifreq ifr{};
  SetName(&ifr, name_);
  if (int error = InterfaceIoctl(SIOCGIFFLAGS, &ifr); error != 0) return ThrowKvmError(env, "SIOCGIFFLAGS", error);
  ifr.ifr_flags |= IFF_UP;
  if (int error = InterfaceIoctl(SIOCSIFFLAGS, &ifr); error != 0) return ThrowKvmError(env, "SIOCSIFFLAGS", error);
  return env.Undefined();
}

// setAddress(bytes): the hardware address of the host's end.
Napi::Value Tap::SetAddress(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "SIOCSIFHWADDR";
  Napi::Env env = info.Env();
  auto bytes = BytesOf(info[0], kName);
  if (bytes.data() == nullptr) return env.Undefined();
  if (bytes.size() != 6) return ThrowRange(env, kName, "takes 6 bytes");
  ifreq ifr{};
  SetName(&ifr, name_);
  ifr.ifr_hwaddr.sa_family = ARPHRD_ETHER;
  std::memcpy(ifr.ifr_hwaddr.sa_data, bytes.data(), bytes.size());
  if (int error = InterfaceIoctl(SIOCSIFHWADDR, &ifr); error != 0) return ThrowKvmError(env, kName, error);
  return env.Undefined();
}

// joinBridge(name): it becomes a port of that bridge.
Napi::Value Tap::JoinBridge(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  ifreq ifr{};
  SetName(&ifr, name_);
  if (int error = InterfaceIoctl(SIOCGIFINDEX, &ifr); error != 0) return ThrowKvmError(env, "SIOCGIFINDEX", error);
  const int index = ifr.ifr_ifindex;
  const std::string bridge = info[0].IsString() ? info[0].As<Napi::String>().Utf8Value() : "";
  if (bridge.empty() || bridge.size() >= IFNAMSIZ) return ThrowRange(env, "SIOCBRADDIF", "a name has 1 to 15 characters");
  ifr = {};
  SetName(&ifr, bridge.c_str());
  ifr.ifr_ifindex = index;
  if (int error = InterfaceIoctl(SIOCBRADDIF, &ifr); error != 0) return ThrowKvmError(env, "SIOCBRADDIF", error);
  return env.Undefined();
}

// useViews(views): where the runs of read() and write() are from now on.
Napi::Value Tap::UseViews(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "Tap.useViews";
  Napi::Env env = info.Env();
  if (!info[0].IsArray()) return ThrowRange(env, kName, "takes a list of views");
  const auto list = info[0].As<Napi::Array>();
  std::vector<Napi::Reference<Napi::Uint8Array>> views;
  for (uint32_t i = 0; i < list.Length(); i++) {
    const Napi::Value view = list.Get(i);
    if (BytesOf(view, kName).data() == nullptr) return env.Undefined();
    views.push_back(Napi::Reference<Napi::Uint8Array>::New(view.As<Napi::Uint8Array>(), 1));
  }
  views_ = std::move(views);
  return env.Undefined();
}

// (runs, counts, buffers): the runs as [view, offset, length] each, how many of them each buffer has, how many buffers.
bool Tap::BuffersOf(const Napi::CallbackInfo& info, const char* what, Buffers* out) const {
  Napi::Env env = info.Env();
  std::span<double> runs;
  std::span<uint32_t> counts;
  uint64_t buffers = 0;
  if (!Check(env, what) || !ArrayOf(info[0], what, napi_float64_array, &runs) ||
      !ArrayOf(info[1], what, napi_uint32_array, &counts) || !IntegerOf(info[2], what, UINT32_MAX, &buffers)) {
    return false;
  }
  size_t total = 0;
  for (size_t i = 0; i < std::min<size_t>(buffers, counts.size()); i++) total += counts[i];
  if (buffers > counts.size() || total > runs.size() / 3) {
    ThrowRange(env, what, "there are fewer runs than counted");
    return false;
  }
  out->runs = runs;
  out->counts = counts.first(buffers);
  // Anew each time: a view that was detached is empty now.
  for (const auto& view : views_) {
    void* data = nullptr;
    size_t length = 0;
    napi_get_typedarray_info(env, view.Value(), nullptr, &length, &data, nullptr, nullptr);
    out->views.emplace_back(static_cast<uint8_t*>(data), data ? length : 0);
  }
  return true;
}

// Appends a run to iov_, or throws RangeError where it does not lie in a view.
bool Tap::AddRun(Napi::Env env, const char* what, const Buffers& buffers, size_t run) {
  const double view = buffers.runs[3 * run], offset = buffers.runs[3 * run + 1], length = buffers.runs[3 * run + 2];
  // All false for what is no number.
  if (view >= 0 && view < static_cast<double>(buffers.views.size())) {
    const std::span<uint8_t> bytes = buffers.views[static_cast<size_t>(view)];
    const auto size = static_cast<double>(bytes.size());
    if (offset >= 0 && offset <= size && length >= 0 && length <= size - offset) {
      iov_.push_back({bytes.data() + static_cast<size_t>(offset), static_cast<size_t>(length)});
      return true;
    }
  }
  ThrowRange(env, what, "a run lies outside its view");
  return false;
}

// Puts the next frame into iov_, which has `capacity` bytes and room for one more entry. Returns its length, which may be larger than
// the capacity: the rest is in spill_ then. -1 and errno where there is none.
ssize_t Tap::Receive(size_t capacity) {
  if (!held_.empty()) {
    if (held_.size() > capacity) return static_cast<ssize_t>(held_.size());
    size_t at = 0;
    for (const iovec& part : iov_) {
      const size_t count = std::min(part.iov_len, held_.size() - at);
      std::memcpy(part.iov_base, held_.data() + at, count);
      at += count;
    }
    held_.clear();
    return static_cast<ssize_t>(at);
  }
  iov_.push_back({spill_.data(), spill_.size()});
  ssize_t length;
  do {
    length = ::readv(fd_.get(), iov_.data(), static_cast<int>(iov_.size()));
  } while (length < 0 && errno == EINTR);
  iov_.pop_back();
  if (length != 0) return length;
  errno = EIO;  // no frame is empty
  return -1;
}

// read(runs, counts, buffers, merge, lengths): fills buffers with frames, from the first on, and gives how many frames there were;
// `lengths` has the length of each. Every frame begins with a buffer of its own; where `merge` is true it goes on in the following
// ones as far as it needs them, else it is dropped where it does not fit in one. Behind the lengths stands why there were no more: the
// length of a frame that waits for more buffers, 0 where the buffers are all used, UINT32_MAX where there is no frame.
Napi::Value Tap::Read(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "read of the tap";
  Napi::Env env = info.Env();
  Buffers buffers;
  std::span<uint32_t> lengths;
  if (!BuffersOf(info, kName, &buffers) || !ArrayOf(info[4], kName, napi_uint32_array, &lengths)) return env.Undefined();
  const bool merge = info[3].IsBoolean() && info[3].As<Napi::Boolean>().Value();
  const size_t count = buffers.counts.size();
  if (lengths.size() <= count) return ThrowRange(env, kName, "takes room for more lengths than buffers");
  uint32_t frames = 0;
  size_t run = 0;
  lengths[0] = 0;
  for (size_t buffer = 0; buffer < count;) {
    // The buffers that the frame may have: as many as the largest one needs, and readv(2) takes.
    iov_.clear();
    size_t capacity = 0;
    for (size_t i = buffer, at = run; i < count && capacity < kMaxFrame && iov_.size() + buffers.counts[i] < IOV_MAX; i++) {
      for (uint32_t n = 0; n < buffers.counts[i]; n++, at++) {
        if (!AddRun(env, kName, buffers, at)) return env.Undefined();
        capacity += iov_.back().iov_len;
      }
      if (!merge) break;
    }
    const ssize_t received = Receive(capacity);
    if (received < 0) {
      if (errno != EAGAIN && frames == 0) return ThrowKvmError(env, kName, errno);
      // Where it was another error, it comes again.
      if (errno == EAGAIN) lengths[frames] = UINT32_MAX;
      break;
    }
    const auto length = static_cast<size_t>(received);
    if (length > capacity) {
      if (!merge) {
        held_.clear();
        continue;
      }
      if (held_.empty()) {
        for (const iovec& part : iov_) {
          const auto* bytes = static_cast<const uint8_t*>(part.iov_base);
          held_.insert(held_.end(), bytes, bytes + part.iov_len);
        }
        held_.insert(held_.end(), spill_.data(), spill_.data() + (length - capacity));
      }
      lengths[frames] = static_cast<uint32_t>(length);
      break;
    }
    for (size_t left = length; left > 0; buffer++) {
      for (uint32_t n = 0; n < buffers.counts[buffer]; n++, run++) {
        left -= std::min(left, static_cast<size_t>(buffers.runs[3 * run + 2]));
      }
    }
    lengths[frames++] = static_cast<uint32_t>(length);
    lengths[frames] = 0;
  }
  return Napi::Number::New(env, frames);
}

// Drops the frame that waits for more buffers.
Napi::Value Tap::Drop(const Napi::CallbackInfo& info) {
  held_.clear();
  return info.Env().Undefined();
}

// write(runs, counts, frames): sends frames, and gives how many were taken: fewer where the interface takes no more for now. One that it
// refuses (its header is wrong, or the interface is down) is lost, as on a wire.
Napi::Value Tap::Write(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "write to the tap";
  Napi::Env env = info.Env();
  Buffers buffers;
  if (!BuffersOf(info, kName, &buffers)) return env.Undefined();
  size_t run = 0;
  uint32_t taken = 0;
  for (const uint32_t count : buffers.counts) {
    iov_.clear();
    for (uint32_t n = 0; n < count; n++, run++) {
      if (!AddRun(env, kName, buffers, run)) return env.Undefined();
    }
    ssize_t written = 0;
    do {
      // What has more parts than writev(2) takes is refused by it; what has none is taken.
      written = ::writev(fd_.get(), iov_.data(), static_cast<int>(std::min<size_t>(iov_.size(), INT_MAX)));
    } while (written < 0 && errno == EINTR);
    if (written < 0 && errno == EAGAIN) break;
    if (written < 0 && errno == EBADFD) return ThrowKvmError(env, kName, errno);
    taken++;
  }
  return Napi::Number::New(env, taken);
}

bool Tap::Deliver(Napi::Env env, uint32_t events) {
  Napi::HandleScope scope(env);
  return CallJs(env, on_event_, {Napi::Number::New(env, events)});
}

// watch(callback): calls back with the events of epoll(7) as long as they last, EPOLLERR also unasked.
Napi::Value Tap::Watch(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Check(env, "epoll")) return env.Undefined();
  if (!info[0].IsFunction()) {
    Napi::TypeError::New(env, "Tap.watch: takes a callback").ThrowAsJavaScriptException();
    return env.Undefined();
  }
  on_event_ = Napi::Persistent(info[0].As<Napi::Function>());
  if (hub_) return env.Undefined();
  ExitHub* hub = ExitHub::Of(env);
  if (!hub) return env.Undefined();
  if (int error = hub->Watch(this, fd_.get(), 0, &watch_id_); error != 0) return ThrowKvmError(env, "epoll", error);
  hub_ = hub;
  return env.Undefined();
}

// arm(events): from now on calls back for these (EPOLLIN, EPOLLOUT).
Napi::Value Tap::Arm(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint64_t events = 0;
  if (!Check(env, "epoll") || !IntegerOf(info[0], "Tap.arm", EPOLLIN | EPOLLOUT, &events)) return env.Undefined();
  if (!hub_) return ThrowRange(env, "Tap.arm", "it is not watched");
  const uint32_t wanted = static_cast<uint32_t>(events) & (EPOLLIN | EPOLLOUT);
  if (int error = hub_->Rearm(watch_id_, fd_.get(), wanted); error != 0) return ThrowKvmError(env, "epoll", error);
  return env.Undefined();
}

void Tap::Unwatch() {
  if (hub_) hub_->Unwatch(watch_id_, fd_.get());
  hub_ = nullptr;
  on_event_.Reset();
}

// Lets go of the interface, which is gone with it where it was made for this Tap.
Napi::Value Tap::Close(const Napi::CallbackInfo& info) {
  Unwatch();
  fd_.Reset();
  views_.clear();
  held_.clear();
  return info.Env().Undefined();
}

}  // namespace nested_kvm
