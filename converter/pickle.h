#pragma once
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "converter/checkpoint.h"

namespace xsr::pickle {

/// What a pickle may hold here. Storage and tensor are descriptions only: their bytes lie elsewhere
/// in the file.
enum class Kind : uint8_t {
  kNone,
  kBool,
  kInt,
  kBigInt,
  kFloat,
  kString,
  kBytes,
  kTuple,
  kList,
  kDict,
  kGlobal,
  kStorage,
  kTensor
};
const char* to_string(Kind);

using Ref = uint32_t;  // index of a node; nodes may be shared and even form circles

struct Node {
  Kind kind = Kind::kNone;
  ScalarType dtype = ScalarType::kF32;  // kStorage
  uint64_t offset = 0;  // kStorage, kTensor, kGlobal: where in the file it was made, for messages
  int64_t integer = 0;  // kBool, kInt; kStorage: elements; kTensor: first element in its storage
  double real = 0;      // kFloat
  std::string_view
      text;  // kString, kBytes, kBigInt (little-endian); kGlobal: "module name"; kStorage: key
  std::vector<Ref>
      items;  // kTuple, kList; kDict: key, value, key, value, ...; kTensor: storage, shape, strides
};

/// The data a pickle describes. Owns nodes only; every string_view points into the bytes that were
/// parsed or static text.
class Data {
 public:
  const Node& operator[](Ref ref) const { return nodes_[ref]; }
  const Node& root() const { return nodes_[root_]; }
  /// The value of a string key of a dict, null when there is none. The last one of several, as in
  /// Python.
  const Node* find(const Node& dict, std::string_view key) const;
  size_t size() const { return nodes_.size(); }  // of nodes, reachable from the root or not
  size_t end() const { return end_; }            // bytes consumed, the STOP opcode included

 private:
  friend class Interpreter;
  std::vector<Node> nodes_;
  std::deque<std::string> names_;  // of globals; a deque, because nodes point into it
  Ref root_ = 0;
  size_t end_ = 0;
};

/// Interprets the pickle at the start of bytes without executing anything: an allow-list of opcodes
/// that build numbers, strings, tuples, lists and dicts, and of the globals that describe tensors
/// (torch storages and _rebuild functions, collections.OrderedDict, torch.Size, torch.device,
/// dtypes). Every other opcode or global is refused by name with Error(UNSUPPORTED); damage is
/// Error(BAD_FILE). Memory is bounded by the limits below whatever the bytes say.
///   where  file and part, for messages;  base  offset of bytes within it
Data parse(std::span<const unsigned char> bytes, const std::string& where, uint64_t base);

constexpr size_t kMaxNodes =
    1 << 20;  // a checkpoint of 400 tensors with optimiser state has some 20,000
constexpr size_t kMaxItems = 1 << 22;  // members of all containers together
constexpr size_t kMaxStack = 1 << 20;
constexpr size_t kMaxMemo = 1 << 20;
constexpr size_t kMaxMarks = 256;
constexpr size_t kMaxRank = 8;  // dimensions of a tensor

}  // namespace xsr::pickle
