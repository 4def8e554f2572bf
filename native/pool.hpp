// Threads that wait asleep and are shared by all programs of a process.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace matexport {

// Where all members of a team wait for one another. Who waits long sleeps: the CPU of another may have been taken away.
class Barrier {
 public:
  explicit Barrier(int members) : members_(members) {}
  void wait();

 private:
  const int members_;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> round_{0};
  std::mutex mutex_;
  std::condition_variable turned_;
};

class Pool {
 public:
  // The pool of this process: a child of a fork, which has none of its parent's threads, gets one of its own.
  static Pool& of_process();

  // Calls work(member) once for each member of 0 to members - 1, by as many threads, one of which is the caller's; by
  // fewer, one member after the other, never: members may wait for each other. Returns false, and calls nothing, where
  // another caller has the pool, or the system gives no threads. `work` may not throw.
  bool try_run(int members, const std::function<void(int)>& work);

 private:
  void serve(int member, unsigned seen);

  std::mutex busy_;
  std::mutex mutex_;
  std::condition_variable begun_, ended_;
  std::atomic<unsigned> round_{0};
  std::atomic<int> left_{0};
  int members_ = 0;
  const std::function<void(int)>* work_ = nullptr;
  int threads_ = 0;
};

}  // namespace matexport
