// NCCL, loaded when several devices are asked for: neither its header nor its library is needed to
// build or to train on one.
#include <dlfcn.h>

#include <atomic>
#include <string>
#include <system_error>
#include <thread>

#include "runtime/error.h"
#include "training/cuda/communicator.h"

namespace xsr::training {
namespace {

// As nccl.h of NCCL 2 declares them.
using Comm = struct ncclComm*;
enum Result : int { kSuccess = 0 };
enum DataType : int { kFloat32 = 7, kFloat64 = 8 };
enum ReduceOp : int { kSum = 0 };

struct Nccl {
  const char* (*error_string)(Result);
  Result (*init_all)(Comm*, int, const int*);
  Result (*destroy)(Comm);
  Result (*abort)(Comm);
  Result (*group_start)();
  Result (*group_end)();
  Result (*broadcast)(const void*, void*, size_t, DataType, int, Comm, cuda::Stream);
  Result (*all_reduce)(const void*, void*, size_t, DataType, ReduceOp, Comm, cuda::Stream);

  static const Nccl& get() {
    static const Nccl nccl = load();
    return nccl;
  }
  void check(Result result, const char* doing) const {
    if (result != kSuccess)
      throw Error(XSR_STATUS_CUDA, std::string("NCCL: ") + doing + ": " + error_string(result));
  }

 private:
  static Nccl load() {
    void* library = ::dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      throw Error(XSR_STATUS_UNSUPPORTED,
                  std::string("training on several devices needs NCCL 2: ") + ::dlerror());
    }
    Nccl nccl;
    const auto find = [&](auto& function, const char* name) {
      function =
          reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
      if (function == nullptr)
        throw Error(XSR_STATUS_UNSUPPORTED, std::string("libnccl.so.2 has no ") + name);
    };
    find(nccl.error_string, "ncclGetErrorString");
    find(nccl.init_all, "ncclCommInitAll");
    find(nccl.destroy, "ncclCommDestroy");
    find(nccl.abort, "ncclCommAbort");
    find(nccl.group_start, "ncclGroupStart");
    find(nccl.group_end, "ncclGroupEnd");
    find(nccl.broadcast, "ncclBroadcast");
    find(nccl.all_reduce, "ncclAllReduce");
    return nccl;
  }
};

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(Comm comm, int32_t rank) : nccl_(Nccl::get()), comm_(comm), rank_(rank) {}
  ~NcclCommunicator() override {
    if (abort_.joinable()) abort_.join();
    if (const Comm comm = comm_.exchange(nullptr)) nccl_.destroy(comm);
  }
  int32_t rank() const override { return rank_; }
  void gather(float* x, const std::vector<int64_t>& starts, cuda::Stream stream) override {
    // The ranks' shares differ in size, which all-gather does not know.
    nccl_.check(nccl_.group_start(), "gathering");
    Result result = kSuccess;
    for (int32_t r = 0; result == kSuccess && r + 1 < static_cast<int32_t>(starts.size()); ++r) {
      const size_t count = static_cast<size_t>(starts[r + 1] - starts[r]);
      if (count == 0) continue;  // the same for every rank
      result = nccl_.broadcast(x + starts[r], x + starts[r], count, kFloat32, r, comm_, stream);
    }
    const Result end = nccl_.group_end();  // whatever came before, or the thread's group stays open
    nccl_.check(result, "gathering");
    nccl_.check(end, "gathering");
  }
  void sum(float* x, int64_t count, cuda::Stream stream) override {
    add_up(x, count, kFloat32, stream);
  }
  void sum(double* x, int64_t count, cuda::Stream stream) override {
    add_up(x, count, kFloat64, stream);
  }
  // It ends the kernels that wait for another rank, and then waits itself until no captured graph
  // holds the communicator. The rank has its graphs still, so it waits in a thread of its own.
  void abort() noexcept override {
    const Comm comm = comm_.exchange(nullptr);  // several ranks may call this at once
    if (comm == nullptr) return;
    try {
      abort_ = std::thread([this, comm] { nccl_.abort(comm); });
    } catch (const std::system_error&) {
      nccl_.abort(comm);
    }
  }

 private:
  void add_up(void* x, int64_t count, DataType type, cuda::Stream stream) {
    if (count == 0) return;
    nccl_.check(nccl_.all_reduce(x, x, static_cast<size_t>(count), type, kSum, comm_, stream),
                "adding up");
  }

  const Nccl& nccl_;
  std::atomic<Comm> comm_;
  const int32_t rank_;
  std::thread abort_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_communicators(const std::vector<int32_t>& devices) {
  const Nccl& nccl = Nccl::get();
  std::vector<Comm> comms(devices.size());
  nccl.check(nccl.init_all(comms.data(), static_cast<int>(devices.size()), devices.data()),
             "starting");
  std::vector<std::unique_ptr<Communicator>> all;
  for (size_t r = 0; r < comms.size(); ++r)
    all.push_back(std::make_unique<NcclCommunicator>(comms[r], static_cast<int32_t>(r)));
  return all;
}

}  // namespace xsr::training
