// Keeps the cores awake while the model is at work, and one evaluating thread on each.
//
// Whenever a helper thread of OpenMP has waited for a moment (while tokens are chosen, or for a
// thread that lost its core), it sleeps. On a virtual machine its core is then given to somebody
// else, and it can take as long as several steps until it is there again, while the other threads
// wait and sleep in their turn. Here, a thread of the lowest class on each core turns in place
// of those that sleep. Nothing here makes the evaluating thread wait for one that turns.
//
// A core on which such a thread turns is not idle, so Linux does not bring it a thread that waits
// for another core: two evaluating threads could share one, for a hundred milliseconds and more.
// So each is kept to a core of its own, as long as there are as many threads as cores.

#include "ggml-cpu.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <cstdio>
#include <system_error>
#include <thread>

extern "C" ggml_status __real_ggml_graph_compute(ggml_cgraph *, ggml_cplan *);
extern "C" ggml_status __wrap_ggml_graph_compute(ggml_cgraph *, ggml_cplan *);

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds LONGEST{4}; // between two evaluations: after it there is no next one soon
constexpr int PAUSES = 32;                      // between two looks at the clock, about a microsecond

// Whether this container may use less processor time than it has cores: turning would use it up.
bool is_rationed(int cores) {
    std::FILE * file = std::fopen("/sys/fs/cgroup/cpu.max", "r");
    long quota = 0, period = 0;
    const bool is_given = file && std::fscanf(file, "%ld %ld", &quota, &period) == 2;
    if (file) {
        std::fclose(file);
    }
    return is_given && quota < period * cores;
}

class Awake {
  public:
    Awake() {
        if (sched_getaffinity(0, sizeof all, &all) || is_rationed(CPU_COUNT(&all))) {
            return;
        }
        cores = CPU_COUNT(&all);
        sigset_t every, before;
        sigfillset(&every);
        pthread_sigmask(SIG_SETMASK, &every, &before); // signals are for threads that run at once
        try {
            for (int core = 0; core < CPU_SETSIZE; ++core) {
                if (CPU_ISSET(core, &all)) {
                    std::thread(&Awake::turn, this, core).detach();
                }
            }
        } catch (const std::system_error &) {
            // As many as may be had: they are a help and no condition.
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    // Threads that leave cores to others need none of this: a turning thread would take those.
    bool is_needed(int threads) const { return cores && threads >= cores; }

    // The threads of OpenMP are the same from one evaluation to the next, until their number changes.
    void arrange(int threads) {
        thread_local int arranged = 0; // of the team that this thread leads
        if (!cores || threads == arranged) {
            return;
        }
        const bool was_kept = arranged == cores;
        arranged = threads;
        if (threads != cores && !was_kept) {
            return;
        }
#ifdef _OPENMP // ggml's own threads are not ours to lead
#pragma omp parallel num_threads(threads)
        {
            const cpu_set_t where = threads == cores ? core_of(omp_get_thread_num()) : all;
            pthread_setaffinity_np(pthread_self(), sizeof where, &where);
        }
#endif
    }

    void until_further_notice() {
        until = INT64_MAX;
        if (asleep) { // a lock or a condition could wait for a thread that gets no core
            ++calls;
            syscall(SYS_futex, &calls, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
        }
    }

    void for_a_moment() { until = now() + std::chrono::nanoseconds(LONGEST).count(); }

  private:
    static int64_t now() {
        return std::chrono::nanoseconds(Clock::now().time_since_epoch()).count();
    }

    cpu_set_t core_of(int thread) const {
        cpu_set_t one;
        CPU_ZERO(&one);
        for (int core = 0; core < CPU_SETSIZE; ++core) {
            if (CPU_ISSET(core, &all) && thread-- == 0) {
                CPU_SET(core, &one);
            }
        }
        return one;
    }

    void turn(int core) {
        const sched_param none{};
        cpu_set_t mine;
        CPU_ZERO(&mine);
        CPU_SET(core, &mine);
        if (pthread_setaffinity_np(pthread_self(), sizeof mine, &mine) || sched_setscheduler(0, SCHED_IDLE, &none)) {
            return;
        }
        pthread_setname_np(pthread_self(), "awake");
        for (;;) {
            const int seen = calls;
            ++asleep;
            if (now() >= until) {
                syscall(SYS_futex, &calls, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
            }
            --asleep;
            while (now() < until) {
                for (int i = 0; i < PAUSES; ++i) {
                    _mm_pause();
                }
                sched_yield(); // or a thread that evaluates waits until the next tick, 4 ms with many kernels
            }
        }
    }

    std::atomic<int64_t> until{0};
    std::atomic<int> asleep{0};
    std::atomic<int> calls{0}; // to wake up; what the futex looks at
    cpu_set_t all;             // cores that this process may use
    int cores = 0;             // 0: nothing is kept awake
};

} // namespace

extern "C" ggml_status __wrap_ggml_graph_compute(ggml_cgraph * graph, ggml_cplan * plan) {
    static Awake & awake = *new Awake; // never destroyed: its threads end with the process
    awake.arrange(plan->n_threads);
    if (!awake.is_needed(plan->n_threads)) {
        return __real_ggml_graph_compute(graph, plan);
    }
    awake.until_further_notice();
    const ggml_status status = __real_ggml_graph_compute(graph, plan);
    awake.for_a_moment();
    return status;
}
