#include "vcpu_thread.h"

#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <mutex>
#include <utility>

#include "env_data.h"
#include "exit_hub.h"
#include "ioctl.h"
#include "scheduling.h"

namespace nested_kvm {

namespace {

// The signal that takes a thread out of KVM_RUN. Its handler does nothing: EINTR is all that it is for.
int KickSignal() {
  static const int number = [] {
    const int rt = SIGRTMIN + 6;
    struct sigaction action{};
    action.sa_handler = [](int) {};
    ::sigaction(rt, &action, nullptr);
    return rt;
  }();
  return number;
}

void FutexWait(std::atomic<uint32_t>& word, uint32_t expected) {
  ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}

void FutexWake(std::atomic<uint32_t>& word) {
  ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
}

}  // namespace

VcpuRunner::VcpuRunner(std::shared_ptr<VcpuCore> core, ExitHub* hub) : core_(std::move(core)), hub_(hub) {}

VcpuRunner::~VcpuRunner() { Abort(); }

int VcpuRunner::Start() {
  KickSignal();
  core_->run()->immediate_exit = 0;
  pthread_attr_t attributes;
  ::pthread_attr_init(&attributes);
  // A thread has its maker's policy otherwise.
  if (InBatch()) {
    ::pthread_attr_setinheritsched(&attributes, PTHREAD_EXPLICIT_SCHED);
    ::pthread_attr_setschedpolicy(&attributes, SCHED_OTHER);
  }
  const int error = ::pthread_create(
      &thread_, &attributes,
      [](void* self) -> void* {
        static_cast<VcpuRunner*>(self)->Main();
        return nullptr;
      },
      this);
  ::pthread_attr_destroy(&attributes);
  started_ = error == 0;
  return error;
}

void VcpuRunner::Kick() {
  // immediate_exit covers the moment before the thread enters KVM_RUN, the signal the time after.
  __atomic_store_n(&core_->run()->immediate_exit, 1, __ATOMIC_SEQ_CST);
  ::pthread_kill(thread_, KickSignal());
}

void VcpuRunner::Command(Commands command) {
  if (!started_) return;
  command_.store(command);
  Kick();
}

void VcpuRunner::Resume() {
  if (!started_) return;
  __atomic_store_n(&core_->run()->immediate_exit, 0, __ATOMIC_SEQ_CST);
  command_.store(kRun);
}

void VcpuRunner::Abort() {
  if (!started_) return;
  aborting_.store(true);
  mailbox_.store(kEmpty);
  FutexWake(mailbox_);
  Kick();
  ::pthread_join(thread_, nullptr);
  started_ = false;
}

bool VcpuRunner::Take(Event* event, int* value) {
  if (!HasMail()) return false;
  taken_ = true;
  *event = event_;
  *value = value_;
  return true;
}

void VcpuRunner::Answer() {
  taken_ = false;
  if (mailbox_.exchange(kEmpty) == kFullAsleep) FutexWake(mailbox_);
}

void VcpuRunner::Post(Event event, int value) {
  event_ = event;
  value_ = value;
  mailbox_.store(kFull);
  hub_->Notify();
  if (event == Event::kStopped) return;
  const int64_t posted = NowNs();
  const int64_t give_up = posted + window_.ns();
  for (int spin = 1; mailbox_.load(std::memory_order_acquire) != kEmpty; spin++) {
    if (aborting_.load(std::memory_order_relaxed)) return;
    if (window_.ns() > 0) {
      CpuRelax();
      if (spin % 32 != 0 || NowNs() < give_up) continue;
    }
    uint32_t full = kFull;
    while (mailbox_.compare_exchange_strong(full, kFullAsleep) || full == kFullAsleep) {
      if (aborting_.load()) return;
      FutexWait(mailbox_, kFullAsleep);
      full = kFull;
      if (mailbox_.load() == kEmpty) break;
    }
  }
  window_.Learn(NowNs() - posted);
}

void VcpuRunner::Main() {
  // Signals of the process belong to its main thread.
  sigset_t blocked;
  ::sigfillset(&blocked);
  for (int kept : {KickSignal(), SIGSEGV, SIGBUS, SIGFPE, SIGILL}) ::sigdelset(&blocked, kept);
  ::pthread_sigmask(SIG_SETMASK, &blocked, nullptr);
  while (!aborting_.load()) {
    const int result = RunOnce(core_.get());
    if (aborting_.load()) return;
    if (result == KVM_EXIT_INTR) {
      const uint32_t command = command_.load();
      if (command == kStop) return Post(Event::kStopped, 0);
      if (command == kPause) Post(Event::kPaused, 0);
    } else if (result < 0) {
      Post(Event::kError, -result);
    } else if (!core_->vm->AnswerStatusWord(core_->run())) {
      Post(Event::kExit, result);
    }
  }
}

// --- the JS class

Napi::Function VcpuThread::Define(Napi::Env env) {
  return DefineClass(env, "VcpuThread",
                     {InstanceMethod<&VcpuThread::Start>("start"), InstanceMethod<&VcpuThread::Pause>("pause"),
                      InstanceMethod<&VcpuThread::Resume>("resume"), InstanceMethod<&VcpuThread::Stop>("stop"),
                      InstanceMethod<&VcpuThread::AnswerLater>("answer"), InstanceMethod<&VcpuThread::Close>("close")});
}

VcpuThread::VcpuThread(const Napi::CallbackInfo& info) : Napi::ObjectWrap<VcpuThread>(info) {
  Napi::Env env = info.Env();
  Vcpu* vcpu = UnwrapAs<Vcpu>(info[0], "VcpuThread: takes a Vcpu");
  if (!vcpu) return;
  if (!info[1].IsFunction()) {
    Napi::TypeError::New(env, "VcpuThread: takes a callback").ThrowAsJavaScriptException();
    return;
  }
  if (!vcpu->core()) {
    ThrowKvmError(env, "VcpuThread", EBADF, "this Vcpu is closed");
    return;
  }
  if (vcpu->core()->runner) {
    ThrowKvmError(env, "VcpuThread", EBUSY, "the vCPU has a VcpuThread already");
    return;
  }
  hub_ = ExitHub::Of(env);
  if (!hub_) return;
  core_ = vcpu->core();
  on_event_ = Napi::Persistent(info[1].As<Napi::Function>());
}

VcpuThread::~VcpuThread() { Abort(); }

void VcpuThread::Abort() {
  if (!runner_) return;
  runner_->Abort();
  core_->runner = nullptr;
  runner_.reset();
}

bool VcpuThread::Deliver(Napi::Env env) {
  int value = 0;
  if (!runner_ || !runner_->Take(&last_, &value)) return true;
  if (last_ == Event::kStopped) Abort();  // joins the thread, which has ended
  if (last_ == Event::kPaused || last_ == Event::kStopped) hub_->Release(this);
  Napi::HandleScope scope(env);
  napi_value answered = nullptr;
  if (!CallJs(env, on_event_, {Napi::Number::New(env, static_cast<int>(last_)), Napi::Number::New(env, value)}, &answered)) {
    return false;
  }
  if (Napi::Value(env, answered).StrictEquals(Napi::Boolean::New(env, true))) Answer();
  return true;
}

void VcpuThread::Answer() {
  // A pause is answered by resume() or stop() alone; a thread that has stopped needs none.
  if (runner_ && !runner_->running() && last_ != Event::kPaused) runner_->Answer();
}

Napi::Value VcpuThread::Start(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!core_) return ThrowKvmError(env, "start", EBADF, "this VcpuThread is closed");
  if (runner_) return ThrowKvmError(env, "start", EALREADY, "the thread runs already");
  if (core_->runner) return ThrowKvmError(env, "start", EBUSY, "the vCPU has a VcpuThread already");
  auto runner = std::make_unique<VcpuRunner>(core_, hub_);
  if (int error = runner->Start(); error != 0) return ThrowKvmError(env, "pthread_create", error);
  runner_ = std::move(runner);
  core_->runner = runner_.get();
  hub_->Hold(this);
  return env.Undefined();
}

Napi::Value VcpuThread::Pause(const Napi::CallbackInfo& info) {
  if (runner_) runner_->Pause();
  return info.Env().Undefined();
}

Napi::Value VcpuThread::Resume(const Napi::CallbackInfo& info) {
  if (!runner_ || runner_->running() || last_ != Event::kPaused) {
    return ThrowKvmError(info.Env(), "resume", EINVAL, "the vCPU is not paused");
  }
  runner_->Resume();
  hub_->Hold(this);
  runner_->Answer();
  return info.Env().Undefined();
}

Napi::Value VcpuThread::Stop(const Napi::CallbackInfo& info) {
  if (!runner_) return info.Env().Undefined();
  runner_->Stop();
  if (!runner_->running() && last_ == Event::kPaused) {
    hub_->Hold(this);
    runner_->Answer();
  }
  return info.Env().Undefined();
}

Napi::Value VcpuThread::AnswerLater(const Napi::CallbackInfo& info) {
  Answer();
  return info.Env().Undefined();
}

Napi::Value VcpuThread::Close(const Napi::CallbackInfo& info) {
  Abort();
  if (hub_) hub_->Release(this);
  core_.reset();
  return info.Env().Undefined();
}

}  // namespace nested_kvm
