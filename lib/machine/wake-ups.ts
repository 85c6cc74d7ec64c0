/** Wake-ups of a trial, after which it is decided whether patience pays. */
const TRIAL = 4
/** What a wake-up of a trial must find to do, on average. */
const WORTHWHILE = 4
/** Wake-ups until the next trial: at first, and after many that were in vain. */
const [WAIT_MIN, WAIT_MAX] = [8, 1024]

/**
 * Decides whether what virtio devices have to do wakes this JS thread at once, or when the guest has given up its processor.
 *
 * Where the host has fewer processors than there is to run, a thread that wakes up takes that of the very vCPU that has just notified it, or that of
 * who sends to the guest: one with much to do is served a chain at a time, each at two switches of threads and an interrupt. A patient thread
 * finds all that there is. But a driver that waits for what it asked for gets it later, by a turn of the scheduler's, where the
 * guest has other work meanwhile. So patience is tried now and then, and kept while it finds much. Where a processor is free it
 * makes no difference.
 */
export class WakeUps {
  readonly #setPatient: (patient: boolean) => void
  #patient = false
  /** Wake-ups until the next decision. */
  #left = WAIT_MIN
  /** What they found since the last. */
  #found = 0
  #wait = WAIT_MIN

  constructor(setPatient: (patient: boolean) => void) {
    this.#setPatient = setPatient
  }

  /** This thread was woken, and found so many chains or frames waiting. */
  woken(found: number): void {
    this.#found += found
    if (--this.#left > 0) return
    if (!this.#patient) {
      this.#begin(true, TRIAL)
    } else if (this.#found >= TRIAL * WORTHWHILE) {
      this.#wait = WAIT_MIN
      this.#begin(true, TRIAL)
    } else {
      this.#begin(false, this.#wait)
      this.#wait = Math.min(2 * this.#wait, WAIT_MAX)
    }
  }

  /** For now nothing wakes it. */
  rest(): void {
    this.#wait = WAIT_MIN
    this.#begin(false, WAIT_MIN)
  }

  #begin(patient: boolean, wakeUps: number): void {
    if (patient !== this.#patient) this.#setPatient(patient)
    this.#patient = patient
    this.#left = wakeUps
    this.#found = 0
  }
}
