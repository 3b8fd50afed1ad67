#pragma once
// PTX, the code that nvcc makes of a kernel, as machine.h carries it out: registers by number,
// branches by index, one function for each instruction. What our kernels are made of is understood;
// anything else ends the program with the line that holds it.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace xsr::ptx {

class Warp;
struct Instruction;
/// Carries an instruction out for the lanes of the mask.
using Execute = void (*)(Warp&, const Instruction&, uint32_t lanes);

enum class Kind : uint8_t {
  kPlain,
  kBranch,
  kExit,
  kBarrier,  // of the block
  kMeeting,  // of the lanes that its mask names
};
enum class Space : uint8_t { kGeneric, kGlobal, kShared, kLocal, kParameter };
enum class Type : uint8_t {
  kPred,
  kB8,
  kU8,
  kS8,
  kB16,
  kU16,
  kS16,
  kB32,
  kU32,
  kS32,
  kB64,
  kU64,
  kS64,
  kF32,
  kF64
};
enum class Comparison : uint8_t {
  kEq,
  kNe,
  kLt,
  kLe,
  kGt,
  kGe,
  kEqu,
  kNeu,
  kLtu,
  kLeu,
  kGtu,
  kGeu,
  kNum,
  kNan
};
enum class Shuffle : uint8_t { kUp, kDown, kButterfly, kIndex };

struct Instruction {
  static constexpr uint32_t kNone = UINT32_MAX;

  Execute execute = nullptr;
  Kind kind = Kind::kPlain;
  Space space = Space::kGeneric;
  Comparison comparison = Comparison::kEq;
  Shuffle shuffle = Shuffle::kIndex;
  uint8_t vector = 1;   // elements at once
  uint8_t bytes = 0;    // of an access to memory
  bool unless = false;  // guarded by !guard
  uint32_t guard = kNone;
  uint32_t to[4] = {kNone, kNone, kNone, kNone};  // registers; kNone: not wanted
  uint32_t from[12] = {};
  int64_t offset = 0;   // of an address
  uint32_t target = 0;  // of a branch
  uint32_t line = 0;    // of the text
};

struct Constant {
  uint32_t reg = 0;
  uint64_t value = 0;
};
enum class Special : uint8_t {
  kThreadX,
  kThreadY,
  kThreadZ,
  kBlockX,
  kBlockY,
  kBlockZ,
  kBlocksX,
  kBlocksY,
  kBlocksZ,
  kThreadsX,
  kThreadsY,
  kThreadsZ,
  kLane
};

struct Kernel {
  std::string name;
  std::vector<Instruction> code;
  std::vector<std::string> opcodes;  // of each, as written
  uint32_t registers = 0;
  std::vector<Constant> constants;                     // registers that hold one from the start on
  std::vector<std::pair<uint32_t, Special>> specials;  // likewise, of a thread
  std::vector<std::pair<size_t, size_t>> parameters;   // offset and size
  size_t parameter_bytes = 0;
  size_t local_bytes = 0;    // of a thread
  size_t static_shared = 0;  // bytes; dynamic shared memory follows, 16-byte aligned
  uint32_t most_threads = 1024;
};

/// One module: its kernels are read when they are asked for. The text stays as it is.
class Program {
 public:
  explicit Program(std::string text);
  /// Ends the program where there is none of this name, or an instruction is not known.
  Kernel kernel(std::string_view name) const;

 private:
  friend class Reader;
  struct Variable {
    std::string name;
    std::vector<unsigned char> bytes;
  };
  std::string text_;
  std::vector<Variable> variables_;  // in global memory
  std::vector<Variable> shared_;     // of whatever kernel uses them
};

[[noreturn, gnu::format(printf, 1, 2)]] void fail(const char* format, ...);

}  // namespace xsr::ptx
