// Keeps the cores awake while the model is at work.
//
// Whenever a helper thread of OpenMP has waited for a moment (while tokens are chosen, or for a
// thread that lost its core), it sleeps. On a virtual machine its core is then given to somebody
// else, and it can take as long as several steps until it is there again, while the other threads
// wait and sleep in their turn. Here, a thread of the lowest class on each core turns in place
// of those that sleep: whatever else wants the core gets it at once.

#include "ggml-cpu.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

extern "C" ggml_status __real_ggml_graph_compute(ggml_cgraph *, ggml_cplan *);
extern "C" ggml_status __wrap_ggml_graph_compute(ggml_cgraph *, ggml_cplan *);

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds LONGEST{5}; // between two evaluations: after it there is no next one soon
constexpr int PAUSES = 32;                      // between two looks at the clock, about a microsecond

class Awake {
  public:
    Awake() {
        cpu_set_t all;
        if (sched_getaffinity(0, sizeof all, &all)) {
            return;
        }
        cores = CPU_COUNT(&all);
        try {
            for (int core = 0; core < CPU_SETSIZE; ++core) {
                if (CPU_ISSET(core, &all)) {
                    std::thread(&Awake::turn, this, core).detach();
                }
            }
        } catch (const std::system_error &) {
            // As many as may be had: they are a help and no condition.
        }
    }

    // Threads that leave cores to others need none of this: a turning thread would take those.
    bool is_needed(int threads) const { return threads > 1 && threads >= cores; }

    void until_further_notice() {
        until = INT64_MAX;
        if (asleep) {
            std::lock_guard<std::mutex> hold(lock);
            wake.notify_all();
        }
    }

    void for_a_moment() { until = now() + std::chrono::nanoseconds(LONGEST).count(); }

  private:
    static int64_t now() {
        return std::chrono::nanoseconds(Clock::now().time_since_epoch()).count();
    }

    void turn(int core) {
        pthread_setname_np(pthread_self(), "awake");
        const sched_param none{};
        cpu_set_t mine;
        CPU_ZERO(&mine);
        CPU_SET(core, &mine);
        if (sched_setscheduler(0, SCHED_IDLE, &none) || pthread_setaffinity_np(pthread_self(), sizeof mine, &mine)) {
            return; // never in the way of anything else
        }
        for (;;) {
            {
                std::unique_lock<std::mutex> hold(lock);
                ++asleep;
                wake.wait(hold, [&] { return now() < until; });
                --asleep;
            }
            while (now() < until) {
                for (int i = 0; i < PAUSES; ++i) {
                    _mm_pause();
                }
            }
        }
    }

    std::mutex lock;
    std::condition_variable wake;
    std::atomic<int64_t> until{0};
    std::atomic<int> asleep{0};
    int cores = 0;
};

} // namespace

extern "C" ggml_status __wrap_ggml_graph_compute(ggml_cgraph * graph, ggml_cplan * plan) {
    static Awake & awake = *new Awake; // never destroyed: its threads end with the process
    if (!awake.is_needed(plan->n_threads)) {
        return __real_ggml_graph_compute(graph, plan);
    }
    awake.until_further_notice();
    const ggml_status status = __real_ggml_graph_compute(graph, plan);
    awake.for_a_moment();
    return status;
}
