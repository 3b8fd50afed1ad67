#include "converter/pickle.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <unordered_map>

namespace xsr::pickle {
namespace {

/// Python's names of all opcodes, for messages (pickletools).
const char* opcode_name(unsigned char op) {
  switch (op) {
    case '(':
      return "MARK";
    case '.':
      return "STOP";
    case '0':
      return "POP";
    case '1':
      return "POP_MARK";
    case '2':
      return "DUP";
    case 'F':
      return "FLOAT";
    case 'I':
      return "INT";
    case 'J':
      return "BININT";
    case 'K':
      return "BININT1";
    case 'L':
      return "LONG";
    case 'M':
      return "BININT2";
    case 'N':
      return "NONE";
    case 'P':
      return "PERSID";
    case 'Q':
      return "BINPERSID";
    case 'R':
      return "REDUCE";
    case 'S':
      return "STRING";
    case 'T':
      return "BINSTRING";
    case 'U':
      return "SHORT_BINSTRING";
    case 'V':
      return "UNICODE";
    case 'X':
      return "BINUNICODE";
    case 'a':
      return "APPEND";
    case 'b':
      return "BUILD";
    case 'c':
      return "GLOBAL";
    case 'd':
      return "DICT";
    case '}':
      return "EMPTY_DICT";
    case 'e':
      return "APPENDS";
    case 'g':
      return "GET";
    case 'h':
      return "BINGET";
    case 'i':
      return "INST";
    case 'j':
      return "LONG_BINGET";
    case 'l':
      return "LIST";
    case ']':
      return "EMPTY_LIST";
    case 'o':
      return "OBJ";
    case 'p':
      return "PUT";
    case 'q':
      return "BINPUT";
    case 'r':
      return "LONG_BINPUT";
    case 's':
      return "SETITEM";
    case 't':
      return "TUPLE";
    case ')':
      return "EMPTY_TUPLE";
    case 'u':
      return "SETITEMS";
    case 'G':
      return "BINFLOAT";
    case 'B':
      return "BINBYTES";
    case 'C':
      return "SHORT_BINBYTES";
    case 0x80:
      return "PROTO";
    case 0x81:
      return "NEWOBJ";
    case 0x82:
      return "EXT1";
    case 0x83:
      return "EXT2";
    case 0x84:
      return "EXT4";
    case 0x85:
      return "TUPLE1";
    case 0x86:
      return "TUPLE2";
    case 0x87:
      return "TUPLE3";
    case 0x88:
      return "NEWTRUE";
    case 0x89:
      return "NEWFALSE";
    case 0x8a:
      return "LONG1";
    case 0x8b:
      return "LONG4";
    case 0x8c:
      return "SHORT_BINUNICODE";
    case 0x8d:
      return "BINUNICODE8";
    case 0x8e:
      return "BINBYTES8";
    case 0x8f:
      return "EMPTY_SET";
    case 0x90:
      return "ADDITEMS";
    case 0x91:
      return "FROZENSET";
    case 0x92:
      return "NEWOBJ_EX";
    case 0x93:
      return "STACK_GLOBAL";
    case 0x94:
      return "MEMOIZE";
    case 0x95:
      return "FRAME";
    case 0x96:
      return "BYTEARRAY8";
    case 0x97:
      return "NEXT_BUFFER";
    case 0x98:
      return "READONLY_BUFFER";
    default:
      return nullptr;
  }
}

/// The element type of a storage class, if global names one.
std::optional<ScalarType> storage_type(std::string_view global) {
  static const std::unordered_map<std::string_view, ScalarType> types = {
      {"torch DoubleStorage", ScalarType::kF64}, {"torch FloatStorage", ScalarType::kF32},
      {"torch HalfStorage", ScalarType::kF16},   {"torch BFloat16Storage", ScalarType::kBF16},
      {"torch LongStorage", ScalarType::kI64},   {"torch IntStorage", ScalarType::kI32},
      {"torch ShortStorage", ScalarType::kI16},  {"torch CharStorage", ScalarType::kI8},
      {"torch ByteStorage", ScalarType::kU8},    {"torch BoolStorage", ScalarType::kBool},
      {"torch UntypedStorage", ScalarType::kU8}, {"torch.storage UntypedStorage", ScalarType::kU8},
  };
  const auto it = types.find(global);
  if (it == types.end()) return {};
  return it->second;
}

enum class Callable {
  kNone,
  kOrderedDict,
  kRebuildTensor,
  kRebuildTensorV2,
  kRebuildParameter,
  kSize,
  kDevice
};

Callable callable(std::string_view global) {
  if (global == "collections OrderedDict") return Callable::kOrderedDict;
  if (global == "torch._utils _rebuild_tensor_v2") return Callable::kRebuildTensorV2;
  if (global == "torch._utils _rebuild_tensor") return Callable::kRebuildTensor;
  if (global == "torch._utils _rebuild_parameter") return Callable::kRebuildParameter;
  if (global == "torch Size") return Callable::kSize;
  if (global == "torch device") return Callable::kDevice;
  return Callable::kNone;
}

/// Names of element types, which occur in pickles as plain data.
bool is_dtype(std::string_view global) {
  static constexpr std::string_view names[] = {
      "torch float64", "torch float32", "torch float16", "torch bfloat16", "torch int64",
      "torch int32",   "torch int16",   "torch int8",    "torch uint8",    "torch bool"};
  return std::find(std::begin(names), std::end(names), global) != std::end(names);
}

std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 80)) out += c >= 0x20 && c <= 0x7e ? c : '?';
  return out;
}

}  // namespace

const char* to_string(Kind kind) {
  switch (kind) {
    case Kind::kNone:
      return "None";
    case Kind::kBool:
      return "a boolean";
    case Kind::kInt:
      return "a number";
    case Kind::kBigInt:
      return "a number beyond 64 bits";
    case Kind::kFloat:
      return "a float";
    case Kind::kString:
      return "a string";
    case Kind::kBytes:
      return "bytes";
    case Kind::kTuple:
      return "a tuple";
    case Kind::kList:
      return "a list";
    case Kind::kDict:
      return "a dictionary";
    case Kind::kGlobal:
      return "a global";
    case Kind::kStorage:
      return "a storage";
    case Kind::kTensor:
      return "a tensor";
  }
  return "unknown";
}

const Node* Data::find(const Node& dict, std::string_view key) const {
  for (size_t i = dict.items.size(); i >= 2; i -= 2) {
    const Node& k = nodes_[dict.items[i - 2]];
    if (k.kind == Kind::kString && k.text == key) return &nodes_[dict.items[i - 1]];
  }
  return nullptr;
}

class Interpreter {
 public:
  Interpreter(std::span<const unsigned char> bytes, const std::string& where, uint64_t base)
      : bytes_(bytes), where_(where), base_(base) {
    for (const Kind kind : {Kind::kNone, Kind::kBool, Kind::kBool, Kind::kTuple}) {
      data_.nodes_.emplace_back().kind = kind;  // None, False, True, () are shared
    }
    data_.nodes_[kTrue].integer = 1;
  }

  Data run() {
    for (;;) {
      op_at_ = at_;
      if (at_ == bytes_.size()) bad("the pickle ends without STOP: truncated?");
      if (step(bytes_[at_++])) return std::move(data_);
    }
  }

 private:
  static constexpr Ref kNone = 0, kFalse = 1, kTrue = 2, kEmptyTuple = 3;

  [[noreturn]] void fail(xsr_status status, const std::string& what) const {
    throw Error(status, fmt::format("{}: byte {}: {}", where_, base_ + op_at_, what));
  }
  [[noreturn]] void bad(const std::string& what) const { fail(XSR_STATUS_BAD_FILE, what); }

  // ---- reading ----
  std::span<const unsigned char> take(uint64_t n) {
    if (n > bytes_.size() - at_) {
      bad(fmt::format("{} needs {} bytes, but only {} follow: truncated?",
                      opcode_name(bytes_[op_at_]), n, bytes_.size() - at_));
    }
    const auto out = bytes_.subspan(at_, n);
    at_ += n;
    return out;
  }
  uint64_t number(size_t n) {  // little-endian
    uint64_t value = 0;
    std::memcpy(&value, take(n).data(), n);
    return value;
  }
  std::string_view text(uint64_t n) {
    const auto s = take(n);
    return {reinterpret_cast<const char*>(s.data()), s.size()};
  }
  std::string_view line(const char* what) {
    const auto rest = bytes_.subspan(at_);
    const auto* nl = static_cast<const unsigned char*>(std::memchr(rest.data(), '\n', rest.size()));
    if (nl == nullptr) bad(fmt::format("the {} of GLOBAL has no end of line: truncated?", what));
    const auto out = text(static_cast<uint64_t>(nl - rest.data()));
    ++at_;
    return out;
  }

  // ---- building ----
  Node& make(Kind kind) {
    if (data_.nodes_.size() >= kMaxNodes)
      bad(fmt::format("the pickle has more than {} values", kMaxNodes));
    Node& node = data_.nodes_.emplace_back();
    node.kind = kind;
    node.offset = base_ + op_at_;
    return node;
  }
  void push(Ref ref) {
    if (stack_.size() >= kMaxStack)
      bad(fmt::format("the stack is more than {} values deep", kMaxStack));
    stack_.push_back(ref);
  }
  void push_made() { push(static_cast<Ref>(data_.nodes_.size() - 1)); }
  size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  Ref pop() {
    if (stack_.size() <= floor())
      bad(fmt::format("{} finds the stack empty", opcode_name(bytes_[op_at_])));
    const Ref ref = stack_.back();
    stack_.pop_back();
    return ref;
  }
  Ref top() const {
    if (stack_.size() <= floor())
      bad(fmt::format("{} finds the stack empty", opcode_name(bytes_[op_at_])));
    return stack_.back();
  }
  std::vector<Ref> pop_to_mark() {
    if (marks_.empty()) bad(fmt::format("{} finds no MARK", opcode_name(bytes_[op_at_])));
    const size_t mark = marks_.back();
    marks_.pop_back();
    std::vector<Ref> out(stack_.begin() + static_cast<ptrdiff_t>(mark), stack_.end());
    stack_.resize(mark);
    return out;
  }
  void count_items(size_t n) {
    items_ += n;
    if (items_ > kMaxItems)
      bad(fmt::format("the containers have more than {} members together", kMaxItems));
  }
  void make_tuple(std::vector<Ref> items) {
    count_items(items.size());
    make(Kind::kTuple).items = std::move(items);
    push_made();
  }
  Node& expect(Ref ref, Kind kind, const char* what) {
    Node& node = data_.nodes_[ref];
    if (node.kind != kind)
      bad(fmt::format("{} is {}, expected {}", what, to_string(node.kind), to_string(kind)));
    return node;
  }
  void set_items(Ref dict, const std::vector<Ref>& items) {
    Node& node = expect(dict, Kind::kDict, "what is assigned to");
    if (items.size() % 2 != 0) bad("a dictionary gets a key without a value");
    for (size_t i = 0; i < items.size(); i += 2) {
      const Kind kind = data_.nodes_[items[i]].kind;
      if (kind == Kind::kList || kind == Kind::kDict || kind == Kind::kTensor ||
          kind == Kind::kStorage) {
        bad(fmt::format("a dictionary key is {}", to_string(kind)));
      }
    }
    count_items(items.size());
    node.items.insert(node.items.end(), items.begin(), items.end());
  }
  void append_items(Ref list, const std::vector<Ref>& items) {
    Node& node = expect(list, Kind::kList, "what is appended to");
    count_items(items.size());
    node.items.insert(node.items.end(), items.begin(), items.end());
  }
  void put(uint64_t id) {
    if (id >= kMaxMemo) bad(fmt::format("memo entry {} is beyond the limit of {}", id, kMaxMemo));
    const Ref ref = top();
    if (id >= memo_.size()) memo_.resize(id + 1, kUnset);
    memo_[id] = ref;
  }
  void get(uint64_t id) {
    if (id >= memo_.size() || memo_[id] == kUnset)
      bad(fmt::format("memo entry {} was never set", id));
    push(memo_[id]);
  }
  void global(std::string_view module, std::string_view name) {
    std::string full = fmt::format("{} {}", module, name);
    if (callable(full) == Callable::kNone && !storage_type(full) && !is_dtype(full)) {
      fail(XSR_STATUS_UNSUPPORTED, fmt::format("the pickle asks for {}.{}, which is none of the "
                                               "data types of a checkpoint; nothing was "
                                               "executed. Save the tensors alone, dense and in "
                                               "f32, f16 or bf16: torch.save({{k: v.float() for "
                                               "k, v in model.state_dict().items()}}, ...) or "
                                               "safetensors",
                                               printable(module), printable(name)));
    }
    Node& node = make(Kind::kGlobal);
    const auto known = std::find(names_.begin(), names_.end(), full);
    node.text = known != names_.end() ? *known : names_.emplace_back(std::move(full));
    push_made();
  }
  /// A number that fits a shape or an offset: 0 to 2⁶³−1.
  int64_t size_of(Ref ref, const char* what) {
    const Node& node = data_.nodes_[ref];
    if (node.kind != Kind::kInt)
      bad(fmt::format("{} is {}, expected a number", what, to_string(node.kind)));
    if (node.integer < 0) bad(fmt::format("{} is {}, expected 0 or more", what, node.integer));
    return node.integer;
  }
  void persistent_id() {
    const Ref id = pop();
    const std::vector<Ref> items = expect(id, Kind::kTuple, "a persistent id").items;
    if (items.size() < 5 || items.size() > 6) {
      bad(fmt::format("a persistent id has {} members, expected 5 or 6", items.size()));
    }
    const std::string_view tag = expect(items[0], Kind::kString, "the tag of a persistent id").text;
    if (tag != "storage") {
      fail(XSR_STATUS_UNSUPPORTED,
           fmt::format("a persistent id is of type \"{}\", expected \"storage\"", printable(tag)));
    }
    const std::string_view type = expect(items[1], Kind::kGlobal, "the type of a storage").text;
    const auto dtype = storage_type(type);
    if (!dtype) bad(fmt::format("the type of a storage is {}, expected a torch storage", type));
    const std::string_view key = expect(items[2], Kind::kString, "the key of a storage").text;
    expect(items[3], Kind::kString, "the device of a storage");
    const int64_t numel = size_of(items[4], "the size of a storage");
    if (items.size() == 6 && items[5] != kNone) {
      fail(XSR_STATUS_UNSUPPORTED,
           "a storage is a view of another one, as PyTorch before 0.4 wrote; save it again with a "
           "newer PyTorch");
    }
    Node& node = make(Kind::kStorage);
    node.dtype = *dtype;
    node.text = key;
    node.integer = numel;
    push_made();
  }
  void rebuild_tensor(const std::vector<Ref>& args) {
    expect(args[0], Kind::kStorage, "the storage of a tensor");
    const int64_t offset = size_of(args[1], "the storage offset of a tensor");
    const auto& shape = expect(args[2], Kind::kTuple, "the shape of a tensor").items;
    const auto& strides = expect(args[3], Kind::kTuple, "the strides of a tensor").items;
    if (shape.size() != strides.size()) {
      bad(fmt::format("a tensor has {} dimensions and {} strides", shape.size(), strides.size()));
    }
    if (shape.size() > kMaxRank)
      bad(fmt::format("a tensor has {} dimensions, the limit is {}", shape.size(), kMaxRank));
    for (const Ref d : shape) size_of(d, "a dimension of a tensor");
    for (const Ref s : strides) size_of(s, "a stride of a tensor");
    Node& node = make(Kind::kTensor);
    node.integer = offset;
    node.items = {args[0], args[2], args[3]};
    push_made();
  }
  void reduce() {
    const Ref arguments = pop();
    const std::vector<Ref> args = expect(arguments, Kind::kTuple, "the arguments of REDUCE").items;
    const std::string_view name = expect(pop(), Kind::kGlobal, "what REDUCE calls").text;
    const auto arity = [&](size_t least, size_t most) {
      if (args.size() < least || args.size() > most) {
        bad(fmt::format("{} gets {} arguments, expected {} to {}", name, args.size(), least, most));
      }
    };
    switch (callable(name)) {
      case Callable::kOrderedDict: {
        arity(0, 1);
        std::vector<Ref> items;
        if (!args.empty()) {  // a list of (key, value)
          for (const Ref pair : expect(args[0], Kind::kList, "the argument of OrderedDict").items) {
            const Node& kv = data_.nodes_[pair];
            if ((kv.kind != Kind::kList && kv.kind != Kind::kTuple) || kv.items.size() != 2) {
              bad("a member of an OrderedDict is no pair of key and value");
            }
            items.insert(items.end(), kv.items.begin(), kv.items.end());
          }
        }
        make(Kind::kDict);
        push_made();
        set_items(top(), items);
        return;
      }
      case Callable::kRebuildTensor:
        arity(4, 4);
        return rebuild_tensor(args);
      case Callable::kRebuildTensorV2:
        arity(6, 7);
        return rebuild_tensor(args);
      case Callable::kRebuildParameter:
        arity(3, 3);
        expect(args[0], Kind::kTensor, "the data of a parameter");
        return push(args[0]);
      case Callable::kSize:
        arity(1, 1);
        expect(args[0], Kind::kTuple, "the argument of torch.Size");
        return push(args[0]);
      case Callable::kDevice:
        arity(1, 2);
        expect(args[0], Kind::kString, "the argument of torch.device");
        return push(args[0]);
      case Callable::kNone:
        break;
    }
    fail(XSR_STATUS_UNSUPPORTED,
         fmt::format("REDUCE calls {}, which is data here, not a function", name));
  }
  void build() {
    // The one state that checkpoints carry: state_dict() hangs _metadata (versions of modules) on
    // its OrderedDict.
    const Ref state = pop();
    expect(top(), Kind::kDict, "what BUILD gives a state to");
    expect(state, Kind::kDict, "the state that BUILD gives");
    const auto& items = data_.nodes_[state].items;
    for (size_t i = 0; i < items.size(); i += 2) {
      const Node& key = data_.nodes_[items[i]];
      if (key.kind != Kind::kString || key.text != "_metadata") {
        fail(XSR_STATUS_UNSUPPORTED,
             fmt::format("BUILD sets the attribute {}, expected _metadata only",
                         key.kind == Kind::kString ? printable(key.text) : to_string(key.kind)));
      }
    }
  }

  /// One opcode; true at STOP.
  bool step(unsigned char op) {
    switch (op) {
      case 0x80: {  // PROTO
        const uint64_t protocol = number(1);
        if (protocol < 2 || protocol > 5) {
          fail(XSR_STATUS_UNSUPPORTED,
               fmt::format("the pickle protocol is {}, expected 2 to 5", protocol));
        }
        return false;
      }
      case 0x95: {  // FRAME
        const uint64_t size = number(8);
        if (size > bytes_.size() - at_) {
          bad(fmt::format("FRAME is {} bytes, but only {} follow: truncated?", size,
                          bytes_.size() - at_));
        }
        return false;
      }
      case '.':  // STOP
        if (stack_.size() != 1 || !marks_.empty()) {
          bad(fmt::format("STOP finds {} values and {} marks, expected 1 and 0", stack_.size(),
                          marks_.size()));
        }
        data_.root_ = stack_.back();
        data_.end_ = at_;
        return true;
      case '(':
        if (marks_.size() >= kMaxMarks)
          bad(fmt::format("MARKs are nested more than {} deep", kMaxMarks));
        marks_.push_back(stack_.size());
        return false;
      case 'N':
        push(kNone);
        return false;
      case 0x88:
        push(kTrue);
        return false;
      case 0x89:
        push(kFalse);
        return false;
      case 'J':
        make(Kind::kInt).integer = static_cast<int32_t>(number(4));
        push_made();
        return false;
      case 'K':
        make(Kind::kInt).integer = static_cast<int64_t>(number(1));
        push_made();
        return false;
      case 'M':
        make(Kind::kInt).integer = static_cast<int64_t>(number(2));
        push_made();
        return false;
      case 0x8a: {  // LONG1: two's complement of n bytes
        const uint64_t n = number(1);
        const std::string_view digits = text(n);
        if (n > 8) {
          make(Kind::kBigInt).text = digits;
        } else {
          uint64_t value = n > 0 && (digits.back() & 0x80) ? ~uint64_t{0} : 0;
          if (n > 0) std::memcpy(&value, digits.data(), n);
          make(Kind::kInt).integer = static_cast<int64_t>(value);
        }
        push_made();
        return false;
      }
      case 'G': {  // BINFLOAT: big-endian
        uint64_t bits = 0;
        for (const unsigned char byte : take(8)) bits = bits << 8 | byte;
        make(Kind::kFloat).real = std::bit_cast<double>(bits);
        push_made();
        return false;
      }
      case 'X':
        return string(Kind::kString, number(4));
      case 0x8c:
        return string(Kind::kString, number(1));
      case 0x8d:
        return string(Kind::kString, number(8));
      case 'T':
        return string(Kind::kString, number(4));
      case 'U':
        return string(Kind::kString, number(1));
      case 'B':
        return string(Kind::kBytes, number(4));
      case 'C':
        return string(Kind::kBytes, number(1));
      case ')':
        push(kEmptyTuple);
        return false;
      case 0x85:
      case 0x86:
      case 0x87: {
        std::vector<Ref> items(op - 0x84u);
        for (size_t i = items.size(); i-- > 0;) items[i] = pop();
        make_tuple(std::move(items));
        return false;
      }
      case 't':
        make_tuple(pop_to_mark());
        return false;
      case ']':
        make(Kind::kList);
        push_made();
        return false;
      case '}':
        make(Kind::kDict);
        push_made();
        return false;
      case 'a': {
        const Ref item = pop();
        append_items(top(), {item});
        return false;
      }
      case 'e': {
        const auto items = pop_to_mark();
        append_items(top(), items);
        return false;
      }
      case 's': {
        const Ref value = pop(), key = pop();
        set_items(top(), {key, value});
        return false;
      }
      case 'u': {
        const auto items = pop_to_mark();
        set_items(top(), items);
        return false;
      }
      case 'q':
        put(number(1));
        return false;
      case 'r':
        put(number(4));
        return false;
      case 0x94:
        put(memo_.size());
        return false;
      case 'h':
        get(number(1));
        return false;
      case 'j':
        get(number(4));
        return false;
      case 'c': {
        const std::string_view module = line("module");
        global(module, line("name"));
        return false;
      }
      case 0x93: {
        const Ref name = pop(), module = pop();
        const std::string_view name_text =
            expect(name, Kind::kString, "the name of STACK_GLOBAL").text;
        global(expect(module, Kind::kString, "the module of STACK_GLOBAL").text, name_text);
        return false;
      }
      case 'Q':
        persistent_id();
        return false;
      case 'R':
        reduce();
        return false;
      case 'b':
        build();
        return false;
      default:
        break;
    }
    if (const char* name = opcode_name(op)) {
      fail(XSR_STATUS_UNSUPPORTED,
           fmt::format(
               "the opcode {} is none that builds the data of a checkpoint; nothing was executed",
               name));
    }
    bad(fmt::format("0x{:02x} is no pickle opcode", op));
  }
  bool string(Kind kind, uint64_t size) {
    make(kind).text = text(size);
    push_made();
    return false;
  }

  static constexpr Ref kUnset = ~Ref{0};

  std::span<const unsigned char> bytes_;
  const std::string& where_;
  const uint64_t base_;
  size_t at_ = 0, op_at_ = 0;
  size_t items_ = 0;
  std::vector<Ref> stack_;
  std::vector<size_t> marks_;
  std::vector<Ref> memo_;
  Data data_;
  std::deque<std::string>& names_ = data_.names_;
};

Data parse(std::span<const unsigned char> bytes, const std::string& where, uint64_t base) {
  return Interpreter(bytes, where, base).run();
}

}  // namespace xsr::pickle
