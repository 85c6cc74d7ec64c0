#pragma once

#include <napi.h>

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <memory>

#include "poll_window.h"
#include "vcpu.h"

namespace nested_kvm {

class ExitHub;

// KVM_RUN once. Returns the exit reason (KVM_EXIT_INTR when interrupted), or -errno.
int RunOnce(VcpuCore* core);

// What a vCPU thread puts into its mailbox. Values are part of the interface to lib/kvm/binding.ts.
enum class Event : int { kExit = 0, kPaused = 1, kStopped = 2, kError = 3 };

// Runs KVM_RUN on a thread of its own, and never touches JS. Each exit goes into the mailbox; the thread then waits
// for the answer. Commands: run, pause, stop. Entering with `immediate_exit` set completes a pending I/O or MMIO
// before the thread pauses, so that the vCPU's state is whole (KVM API 5, kvm_run.immediate_exit).
class VcpuRunner {
 public:
  VcpuRunner(std::shared_ptr<VcpuCore> core, ExitHub* hub);
  ~VcpuRunner();

  // --- JS thread
  int Start();                             // 0, or the errno of pthread_create
  void Pause() { Command(kPause); }        // kPaused follows
  void Resume();                           // after kPaused
  void Stop() { Command(kStop); }          // kStopped follows
  void Abort();                            // out of KVM_RUN and joined when it returns; no event follows
  bool Take(Event* event, int* value);     // the mail, if there is new mail
  void Answer();                           // the mail is dealt with
  bool running() const { return started_ && !taken_; }

  bool HasMail() const { return !taken_ && mailbox_.load(std::memory_order_acquire) != kEmpty; }

 private:
  enum Commands : uint32_t { kRun, kPause, kStop };
  enum Mailbox : uint32_t { kEmpty, kFull, kFullAsleep };  // kFullAsleep: the thread sleeps on it

  void Main();
  void Command(Commands command);
  void Kick();
  void Post(Event event, int value);  // and waits for the answer

  std::shared_ptr<VcpuCore> core_;
  ExitHub* hub_;
  pthread_t thread_{};
  std::atomic<uint32_t> command_{kRun};
  std::atomic<uint32_t> mailbox_{kEmpty};
  std::atomic<bool> aborting_{false};
  Event event_{};
  int value_ = 0;
  PollWindow window_;     // the thread's
  bool started_ = false;  // the JS thread's: there is a thread to join
  bool taken_ = false;    // the JS thread's: mail is out, the answer is not given yet
};

// JS class VcpuThread: new VcpuThread(vcpu, onEvent: (event, value) => boolean). `onEvent` answers by returning true,
// or later through answer().
class VcpuThread : public Napi::ObjectWrap<VcpuThread> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit VcpuThread(const Napi::CallbackInfo& info);
  ~VcpuThread();

  // Called by the hub on the JS thread. Returns false when JS threw.
  bool Deliver(Napi::Env env);
  bool HasMail() const { return runner_ && runner_->HasMail(); }
  bool Running() const { return runner_ && runner_->running(); }
  void Abort();

 private:
  Napi::Value Start(const Napi::CallbackInfo& info);
  Napi::Value Pause(const Napi::CallbackInfo& info);
  Napi::Value Resume(const Napi::CallbackInfo& info);
  Napi::Value Stop(const Napi::CallbackInfo& info);
  Napi::Value AnswerLater(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);
  void Answer();

  std::shared_ptr<VcpuCore> core_;
  std::unique_ptr<VcpuRunner> runner_;
  ExitHub* hub_ = nullptr;
  Napi::FunctionReference on_event_;
  Event last_ = Event::kExit;
};

}  // namespace nested_kvm
