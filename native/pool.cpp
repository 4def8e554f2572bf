#include "pool.hpp"

#include <pthread.h>

#include <system_error>

namespace matexport {
namespace {

constexpr int spins = 4000;  // about a tenth of a millisecond: longer than a stage of a short text, and than waking up

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

template <class Ready>
bool spin(Ready ready) {
  for (int i = 0; i < spins; i++) {
    if (ready()) return true;
    relax();
  }
  return ready();
}

std::mutex pool_mutex;
Pool* pool = nullptr;  // never freed: its threads wait to the end of the process

}  // namespace

void Barrier::wait() {
  if (members_ == 1) return;
  const unsigned round = round_.load();
  if (arrived_.fetch_add(1) == members_ - 1) {
    arrived_.store(0);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      round_.store(round + 1);
    }
    turned_.notify_all();
    return;
  }
  if (spin([&] { return round_.load() != round; })) return;
  std::unique_lock<std::mutex> lock(mutex_);
  turned_.wait(lock, [&] { return round_.load() != round; });
}

Pool& Pool::of_process() {
  // What a fork leaves of the parent's pool is never touched again: its threads are gone and its locks may be held.
  static const int forks = pthread_atfork([] { pool_mutex.lock(); }, [] { pool_mutex.unlock(); },
                                          [] {
                                            pool = nullptr;
                                            pool_mutex.unlock();
                                          });
  (void)forks;
  std::lock_guard<std::mutex> lock(pool_mutex);
  if (pool == nullptr) pool = new Pool();
  return *pool;
}

bool Pool::try_run(int members, const std::function<void(int)>& work) {
  if (members == 1) {
    work(0);
    return true;
  }
  std::unique_lock<std::mutex> busy(busy_, std::try_to_lock);
  if (!busy.owns_lock()) return false;
  try {
    for (; threads_ < members - 1; threads_++) std::thread(&Pool::serve, this, threads_ + 1, round_.load()).detach();
  } catch (const std::system_error&) {
    return false;  // the system gives no more threads
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    work_ = &work;
    members_ = members;
    left_.store(members - 1);
    round_.fetch_add(1);
  }
  begun_.notify_all();
  work(0);
  if (!spin([&] { return left_.load() == 0; })) {
    std::unique_lock<std::mutex> lock(mutex_);
    ended_.wait(lock, [&] { return left_.load() == 0; });
  }
  return true;
}

void Pool::serve(int member, unsigned seen) {
  for (;;) {
    if (!spin([&] { return round_.load() != seen; })) {
      std::unique_lock<std::mutex> lock(mutex_);
      begun_.wait(lock, [&] { return round_.load() != seen; });
    }
    const std::function<void(int)>* work;
    int members;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      seen = round_.load();
      work = work_;
      members = members_;
    }
    if (member >= members) continue;  // of a smaller team, which does not wait for this thread
    (*work)(member);
    std::lock_guard<std::mutex> lock(mutex_);
    if (left_.fetch_sub(1) == 1) ended_.notify_all();
  }
}

}  // namespace matexport
