#include "tests/ptx/program.h"

#include <algorithm>
#include <cctype>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>

#include "tests/ptx/operations.h"

namespace xsr::ptx {
namespace {

constexpr std::string_view kBlanks = " \t\r\n";

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlanks) - first + 1);
}
bool starts(std::string_view text, std::string_view with) {
  return text.substr(0, with.size()) == with;
}

/// The next word, taken from the front.
std::string_view take_word(std::string_view& text) {
  text = trimmed(text);
  const std::string_view word = text.substr(0, text.find_first_of(kBlanks));
  text = trimmed(text.substr(word.size()));
  return word;
}

/// At commas outside brackets.
std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> pieces;
  int depth = 0;
  size_t start = 0;
  for (size_t i = 0; i <= text.size(); ++i) {
    if (i == text.size() || (text[i] == ',' && depth == 0)) {
      if (const std::string_view piece = trimmed(text.substr(start, i - start)); !piece.empty())
        pieces.push_back(piece);
      start = i + 1;
    } else if (std::strchr("([{", text[i]) != nullptr) {
      ++depth;
    } else if (std::strchr(")]}", text[i]) != nullptr) {
      --depth;
    }
  }
  return pieces;
}

uint64_t number(std::string_view text) {
  const std::string digits(text);
  if (starts(text, "0f") || starts(text, "0F") || starts(text, "0d") || starts(text, "0D"))
    return std::strtoull(digits.c_str() + 2, nullptr, 16);
  return text[0] == '-' ? static_cast<uint64_t>(std::strtoll(digits.c_str(), nullptr, 0))
                        : std::strtoull(digits.c_str(), nullptr, 0);
}

size_t round_up(size_t bytes, size_t alignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

struct Declared {  // ".align 4 .b8 name[128]", ".u64 name", behind the state space
  std::string_view name;
  size_t alignment = 1, bytes = 0;
  bool open = false;  // name[]
};
Declared declared(std::string_view text) {
  Declared result;
  std::string_view rest = text;
  std::optional<size_t> alignment;
  while (starts(trimmed(rest), ".")) {
    const std::string_view word = take_word(rest);
    if (word == ".align") {
      alignment = number(take_word(rest));
    } else if (word != ".ptr") {
      result.bytes = size_of(type_of({word.substr(1)}));
    }
  }
  result.alignment = alignment.value_or(result.bytes);
  rest = trimmed(rest);
  const size_t bracket = rest.find('[');
  result.name = trimmed(rest.substr(0, bracket));
  if (bracket != std::string_view::npos) {
    const std::string_view count = trimmed(rest.substr(bracket + 1, rest.find(']') - bracket - 1));
    result.open = count.empty();
    result.bytes *= result.open ? 0 : number(count);
  }
  return result;
}

}  // namespace

void fail(const char* format, ...) {
  std::fputs("ptx: ", stderr);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::abort();
}

/// Reads one kernel; what it calls is read into it where it is called.
class Reader {
 public:
  Reader(const Program& program, Kernel& kernel) : program_(program), kernel_(kernel) {
    none_ = constant(0);
  }

  void read(size_t entry) {
    const std::string_view text = program_.text_;
    size_t at = text.find('(', entry) + 1;
    const size_t end = text.find(')', at);
    for (std::string_view parameter : split(text.substr(at, end - at))) {
      take_word(parameter);  // .param
      const Declared one = declared(parameter);
      const size_t offset = round_up(kernel_.parameter_bytes, one.alignment);
      kernel_.parameters.emplace_back(offset, one.bytes);
      kernel_.parameter_bytes = offset + one.bytes;
      symbols_.emplace_back(one.name, Symbol{Space::kParameter, offset});
    }
    const size_t body = text.find('{', end);
    std::string_view directives = text.substr(end + 1, body - end - 1);
    if (const size_t most = directives.find(".maxntid"); most != std::string_view::npos) {
      kernel_.most_threads = 1;
      for (const std::string_view count :
           split(directives.substr(most + 8, directives.find_first_of(".\n", most + 8) - most - 8)))
        kernel_.most_threads *= static_cast<uint32_t>(number(count));
    }
    read_body(body);
    for (const auto& [instruction, label] : jumps_) {
      const auto at = labels_.find(label);
      if (at == labels_.end()) fail("%s: no label %s", kernel_.name.c_str(), label.c_str());
      kernel_.code[instruction].target = at->second;
    }
    guard_ = Instruction::kNone;
    emit("ret");
    kernel_.code.back().kind = Kind::kExit;
    kernel_.registers = next_register_;
  }

 private:
  struct Symbol {
    Space space;
    uint64_t address;
  };
  struct Registers {  // %r<191>, or one without a number
    std::string prefix;
    uint32_t first, count;
    bool numbered;
  };

  /// From the brace that opens it to the one that closes it.
  void read_body(size_t brace) {
    const std::string_view text = program_.text_;
    size_t at = brace, depth = 0;
    const size_t outer = scopes_.size();
    line_ = static_cast<uint32_t>(
        1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(brace), '\n'));
    while (true) {
      while (at < text.size() && std::isspace(static_cast<unsigned char>(text[at])) != 0)
        line_ += text[at++] == '\n';
      if (at >= text.size()) fail("%s: its text ends early", kernel_.name.c_str());
      if (starts(text.substr(at), "//") || starts(text.substr(at), ".loc\t") ||
          starts(text.substr(at), ".file\t")) {
        at = text.find('\n', at);
      } else if (text[at] == '{') {
        scopes_.emplace_back();
        ++depth;
        ++at;
      } else if (text[at] == '}') {
        scopes_.pop_back();
        ++at;
        if (--depth == 0) break;
      } else if (const size_t end = text.find_first_of(";:", at); text[end] == ':') {
        labels_[prefix_ + std::string(trimmed(text.substr(at, end - at)))] =
            static_cast<uint32_t>(kernel_.code.size());
        at = end + 1;
      } else {
        std::string statement;  // without comments
        for (std::string_view rest = text.substr(at, end - at); !rest.empty();) {
          const size_t comment = rest.find("//");
          statement += rest.substr(0, comment);
          rest = comment == std::string_view::npos
                     ? std::string_view()
                     : rest.substr(std::min(rest.find('\n', comment), rest.size()));
        }
        read_statement(statement);
        line_ += static_cast<uint32_t>(std::count(text.begin() + static_cast<std::ptrdiff_t>(at),
                                                  text.begin() + static_cast<std::ptrdiff_t>(end),
                                                  '\n'));
        at = end + 1;
      }
    }
    if (scopes_.size() != outer) unknown("a brace");
  }

  [[noreturn]] void unknown(std::string_view statement) const {
    fail("%s, line %u: not understood: %s", kernel_.name.c_str(), line_,
         std::string(statement).c_str());
  }

  void read_statement(std::string_view statement) {
    std::string_view rest = trimmed(statement);
    const std::string_view first = take_word(rest);
    if (first == ".reg") {
      declare_registers(rest);
    } else if (first == ".shared" || first == ".local" || first == ".param") {
      declare_variable(first, rest);
    } else if (starts(first, ".pragma")) {
      return;
    } else if (starts(first, ".")) {
      unknown(statement);
    } else {
      read_instruction(statement);
    }
  }

  void declare_registers(std::string_view rest) {
    take_word(rest);  // the type
    for (const std::string_view name : split(rest)) {
      const size_t bracket = name.find('<');
      const uint32_t count = bracket == std::string_view::npos
                                 ? 1
                                 : static_cast<uint32_t>(number(name.substr(bracket + 1)));
      scopes_.back().push_back({std::string(name.substr(0, bracket)), next_register_, count,
                                bracket != std::string_view::npos});
      next_register_ += count;
    }
  }

  void declare_variable(std::string_view space, std::string_view rest) {
    const Declared one = declared(rest);
    size_t& bytes =
        space == ".shared" ? kernel_.static_shared : kernel_.local_bytes;  // .param: of a call
    const size_t offset = round_up(bytes, one.alignment);
    bytes = offset + one.bytes;
    symbols_.emplace_back(one.name,
                          Symbol{space == ".shared" ? Space::kShared : Space::kLocal, offset});
  }

  std::optional<uint32_t> find_register(std::string_view name) const {
    for (size_t s = scopes_.size(); s-- > first_scope_;) {
      for (const Registers& one : scopes_[s]) {
        if (!one.numbered) {
          if (one.prefix == name) return one.first;
          continue;
        }
        if (!starts(name, one.prefix)) continue;
        const std::string_view digits = name.substr(one.prefix.size());
        if (digits.empty() || digits.find_first_not_of("0123456789") != std::string_view::npos)
          continue;
        const uint64_t index = number(digits);
        if (index < one.count) return one.first + static_cast<uint32_t>(index);
      }
    }
    return std::nullopt;
  }

  uint32_t constant(uint64_t value) {
    const auto [at, is_new] = constants_.try_emplace(value, next_register_);
    if (is_new) kernel_.constants.push_back({next_register_++, value});
    return at->second;
  }

  std::optional<Symbol> find_symbol(std::string_view name) {
    for (size_t k = symbols_.size(); k-- > 0;) {  // the latest, for functions' parameters
      if (symbols_[k].first == name) return symbols_[k].second;
    }
    for (const Program::Variable& variable : program_.shared_) {
      if (variable.name == name) {
        // Several kernels use it; each has it among its own.
        const size_t offset = round_up(kernel_.static_shared, 16);
        kernel_.static_shared = offset + variable.bytes.size();
        symbols_.emplace_back(variable.name, Symbol{Space::kShared, offset});
        return symbols_.back().second;
      }
    }
    for (const Program::Variable& variable : program_.variables_) {
      if (variable.name == name)
        return Symbol{Space::kGlobal, reinterpret_cast<uint64_t>(variable.bytes.data())};
    }
    return std::nullopt;
  }

  /// Dynamic shared memory lies behind what is static, of which there may be more to come; such an
  /// address is a register that is set when all is read.
  uint32_t operand(std::string_view text) {
    if (text == "_") return Instruction::kNone;
    if (const auto reg = find_register(text)) return *reg;
    if (text[0] == '%') return special(text);
    if (std::isdigit(static_cast<unsigned char>(text[0])) != 0 || text[0] == '-')
      return constant(number(text));
    if (is_dynamic(text)) return constant(kDynamicShared);
    if (const auto symbol = find_symbol(text)) return constant(symbol->address);
    unknown(text);
  }
  bool is_dynamic(std::string_view name) {
    // .extern .shared, declared outside kernels
    if (find_symbol(name)) return false;
    const size_t at = program_.text_.find(".extern .shared");
    return at != std::string::npos &&
           program_.text_.find(std::string(name) + "[]", at) != std::string::npos;
  }

  uint32_t special(std::string_view name) {
    static constexpr std::pair<std::string_view, Special> kNames[] = {
        {"%tid.x", Special::kThreadX},    {"%tid.y", Special::kThreadY},
        {"%tid.z", Special::kThreadZ},    {"%ctaid.x", Special::kBlockX},
        {"%ctaid.y", Special::kBlockY},   {"%ctaid.z", Special::kBlockZ},
        {"%nctaid.x", Special::kBlocksX}, {"%nctaid.y", Special::kBlocksY},
        {"%nctaid.z", Special::kBlocksZ}, {"%ntid.x", Special::kThreadsX},
        {"%ntid.y", Special::kThreadsY},  {"%ntid.z", Special::kThreadsZ},
        {"%laneid", Special::kLane}};
    for (const auto& [text, which] : kNames) {
      if (text != name) continue;
      for (const auto& [reg, known] : kernel_.specials) {
        if (known == which) return reg;
      }
      kernel_.specials.emplace_back(next_register_, which);
      return next_register_++;
    }
    unknown(name);
  }

  Instruction& emit(std::string_view opcode) {
    kernel_.opcodes.emplace_back(opcode);
    Instruction& instruction = kernel_.code.emplace_back();
    std::fill(std::begin(instruction.from), std::end(instruction.from), none_);
    instruction.line = line_;
    instruction.guard = guard_;
    instruction.unless = unless_;
    return instruction;
  }

  std::vector<uint32_t> operands(std::string_view braces) {
    std::vector<uint32_t> result;
    if (braces[0] != '{') return {operand(braces)};
    for (const std::string_view one : split(braces.substr(1, braces.size() - 2)))
      result.push_back(operand(one));
    return result;
  }
  /// [register + offset], [name + offset], [name]
  void address(std::string_view text, Instruction& instruction) {
    if (text.front() != '[' || text.back() != ']') unknown(text);
    text = trimmed(text.substr(1, text.size() - 2));
    const size_t plus = text.find('+');
    if (plus != std::string_view::npos)
      instruction.offset = static_cast<int64_t>(number(trimmed(text.substr(plus + 1))));
    const std::string_view base = trimmed(text.substr(0, plus));
    instruction.from[0] = operand(base);
    // What a function is given lies with what is a thread's own.
    if (instruction.space == Space::kParameter && !find_register(base)) {
      const auto symbol = find_symbol(base);
      if (symbol) instruction.space = symbol->space;
    }
  }

  static Space space_of(const Parts& parts) {
    for (const auto& [name, space] : {std::pair{"global", Space::kGlobal},
                                      {"shared", Space::kShared},
                                      {"local", Space::kLocal},
                                      {"param", Space::kParameter},
                                      {"const", Space::kGlobal}}) {
      if (has(parts, name)) return space;
    }
    return Space::kGeneric;
  }

  void read_instruction(std::string_view statement) {
    std::string_view rest = trimmed(statement);
    guard_ = Instruction::kNone;
    if (rest[0] == '@') {
      std::string_view guard = take_word(rest).substr(1);
      unless_ = guard[0] == '!';
      guard_ = operand(guard.substr(unless_ ? 1 : 0));
    }
    const std::string_view opcode = take_word(rest);
    const Parts parts = split_opcode(opcode);
    const std::string_view head = parts[0];
    if (head == "call") {
      read_call(rest);
      return;
    }
    const std::vector<std::string_view> given = split(rest);
    const auto expect = [&](size_t count) {
      if (given.size() != count) unknown(statement);
    };
    Instruction& i = emit(opcode);
    if (head == "bra") {
      expect(1);
      i.kind = Kind::kBranch;
      jumps_.emplace_back(kernel_.code.size() - 1, prefix_ + std::string(given[0]));
    } else if (head == "ret" || head == "exit") {
      i.kind = Kind::kExit;
      if (!return_label_.empty()) {
        i.kind = Kind::kBranch;
        jumps_.emplace_back(kernel_.code.size() - 1, return_label_);
      }
    } else if (opcode == "bar.sync" || opcode == "barrier.sync.aligned") {
      expect(1);
      if (given[0] != "0" || guard_ != Instruction::kNone) unknown(statement);
      i.kind = Kind::kBarrier;
    } else if (opcode == "bar.warp.sync") {
      expect(1);
      i.kind = Kind::kMeeting;
      i.from[11] = operand(given[0]);
      i.execute = &sync_warp;
    } else if (head == "shfl") {
      expect(5);
      i.kind = Kind::kMeeting;
      const size_t bar = given[0].find('|');
      i.to[0] = operand(trimmed(given[0].substr(0, bar)));
      if (bar != std::string_view::npos) i.to[1] = operand(trimmed(given[0].substr(bar + 1)));
      for (size_t k = 0; k < 3; ++k) i.from[k] = operand(given[1 + k]);
      i.from[11] = operand(given[4]);
      if (parts.size() != 4 || parts[1] != "sync" || parts[3] != "b32") unknown(statement);
      i.shuffle = parts[2] == "up"     ? Shuffle::kUp
                  : parts[2] == "down" ? Shuffle::kDown
                  : parts[2] == "bfly" ? Shuffle::kButterfly
                                       : Shuffle::kIndex;
      i.execute = &shuffle;
    } else if (opcode == "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32") {
      expect(4);
      i.kind = Kind::kMeeting;
      const std::vector<uint32_t> d = operands(given[0]);
      std::copy(d.begin(), d.end(), i.to);
      size_t k = 0;
      for (const size_t from : {1, 2, 3}) {
        for (const uint32_t one : operands(given[from])) i.from[k++] = one;
      }
      if (d.size() != 4 || k != 10) unknown(statement);
      i.from[11] = constant(UINT32_MAX);
      i.execute = &mma_m16n8k16_bf16;
    } else if (head == "ldmatrix") {
      expect(2);
      i.kind = Kind::kMeeting;
      i.space = Space::kShared;
      const std::vector<uint32_t> d = operands(given[0]);
      std::copy(d.begin(), d.end(), i.to);
      address(given[1], i);
      i.bytes = 16;
      i.from[11] = constant(UINT32_MAX);
      const bool transposed = opcode == "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16";
      if (d.size() != 4 || (!transposed && opcode != "ldmatrix.sync.aligned.m8n8.x4.shared.b16"))
        unknown(statement);
      i.execute = transposed ? &load_matrix_x4_transposed : &load_matrix_x4;
    } else if (opcode == "cp.async.cg.shared.global") {
      expect(4);
      if (given[2] != "16") unknown(statement);
      i.from[0] = operand(given[0].substr(1, given[0].size() - 2));
      i.from[1] = operand(given[1].substr(1, given[1].size() - 2));
      i.from[2] = operand(given[3]);
      i.bytes = 16;
      i.execute = &copy_16_async;
    } else if (opcode == "cp.async.commit_group") {
      i.execute = &copy_commit;
    } else if (opcode == "cp.async.wait_group") {
      i.from[0] = operand(given[0]);
      i.execute = &copy_wait;
    } else if (head == "cvta") {
      expect(2);
      i.to[0] = operand(given[0]);
      i.from[0] = operand(given[1]);
      const bool to = has(parts, "to");
      switch (space_of(parts)) {
        case Space::kShared:
          i.execute = to ? &to_shared : &from_shared;
          break;
        case Space::kGlobal:
          i.execute = arithmetic({"mov", "u64"});  // they have the same addresses here
          break;
        default:
          unknown(statement);
      }
    } else if (head == "ld" || head == "st") {
      expect(2);
      i.space = space_of(parts);
      const bool load_it = head == "ld";
      const std::string_view registers = given[load_it ? 0 : 1];
      const std::vector<uint32_t> elements = operands(registers);
      i.vector = static_cast<uint8_t>(elements.size());
      if (elements.size() > 4 || (has(parts, "v2")   ? 2u
                                  : has(parts, "v4") ? 4u
                                                     : 1u) != elements.size())
        unknown(statement);
      if (load_it) {
        std::copy(elements.begin(), elements.end(), i.to);
      } else {
        std::copy(elements.begin(), elements.end(), i.from + 1);
      }
      address(given[load_it ? 1 : 0], i);
      i.bytes = static_cast<uint8_t>(size_of(type_of(parts)) * i.vector);
      i.execute = load_it ? load(type_of(parts)) : store(type_of(parts));
    } else if (head == "setp") {
      const size_t bar = given[0].find('|');
      i.to[0] = operand(trimmed(given[0].substr(0, bar)));
      if (bar != std::string_view::npos) i.to[1] = operand(trimmed(given[0].substr(bar + 1)));
      if (given.size() != 3 && given.size() != 4) unknown(statement);
      for (size_t k = 1; k < given.size(); ++k) i.from[k - 1] = operand(given[k]);
      i.comparison = comparison_of(parts);
      i.execute = comparison(type_of(parts), given.size() == 4 ? parts[2] : "");
    } else if (head == "mov" && (given[0][0] == '{' || given[1][0] == '{')) {
      const bool unpacks = given[0][0] == '{';
      const std::vector<uint32_t> elements = operands(given[unpacks ? 0 : 1]);
      i.vector = static_cast<uint8_t>(elements.size());
      const size_t bytes = size_of(type_of(parts)) / elements.size();
      if (unpacks) {
        std::copy(elements.begin(), elements.end(), i.to);
        i.from[0] = operand(given[1]);
      } else {
        i.to[0] = operand(given[0]);
        std::copy(elements.begin(), elements.end(), i.from);
      }
      i.execute = unpacks ? unpack(bytes) : pack(bytes);
    } else {
      i.execute = arithmetic(parts);
      if (i.execute == nullptr || given.size() < 2 || given.size() > 5) unknown(statement);
      i.to[0] = operand(given[0]);
      for (size_t k = 1; k < given.size(); ++k) i.from[k - 1] = operand(given[k]);
    }
    if (i.kind != Kind::kBranch && i.kind != Kind::kExit && i.kind != Kind::kBarrier &&
        i.execute == nullptr)
      unknown(statement);
  }

  /// (results), name, (parameters): the function's text with its own registers, in this place.
  void read_call(std::string_view rest) {
    if (guard_ != Instruction::kNone) unknown(rest);
    const std::vector<std::string_view> given = split(rest);
    if (given.size() != 3) unknown(rest);
    const auto inside = [](std::string_view list) {
      return split(list.substr(1, list.size() - 2));
    };
    const std::string_view text = program_.text_, name = given[1];
    // Its definition; a declaration ends with a semicolon.
    size_t at = 0, body = 0;
    std::vector<std::string_view> formal;
    while (true) {
      at = text.find(".func", at);
      if (at == std::string_view::npos) unknown(rest);
      const size_t results = text.find('(', at), results_end = text.find(')', results);
      const size_t parameters = text.find('(', results_end),
                   parameters_end = text.find(')', parameters);
      body = text.find_first_not_of(kBlanks, parameters_end + 1);
      if (trimmed(text.substr(results_end + 1, parameters - results_end - 1)) == name &&
          text[body] == '{') {
        formal = split(text.substr(results + 1, results_end - results - 1));
        const auto more = split(text.substr(parameters + 1, parameters_end - parameters - 1));
        formal.insert(formal.end(), more.begin(), more.end());
        break;
      }
      at = parameters_end;
    }
    std::vector<std::string_view> actual = inside(given[0]);
    for (const std::string_view one : inside(given[2])) actual.push_back(one);
    if (actual.size() != formal.size()) unknown(rest);
    for (size_t k = 0; k < formal.size(); ++k) {
      std::string_view parameter = formal[k];
      take_word(parameter);
      symbols_.emplace_back(declared(parameter).name, *find_symbol(actual[k]));
    }
    const std::string prefix = prefix_, return_label = return_label_;
    const uint32_t line = line_;
    const size_t first_scope = first_scope_;
    first_scope_ = scopes_.size();
    prefix_ = prefix + std::to_string(kernel_.code.size()) + ":";
    return_label_ = prefix_ + "return";
    read_body(body);
    labels_[return_label_] = static_cast<uint32_t>(kernel_.code.size());
    first_scope_ = first_scope;
    prefix_ = prefix;
    return_label_ = return_label;
    line_ = line;
  }

  static constexpr uint64_t kDynamicShared = 0xd1aa31c0d1aa31c0;  // until its place is known

  const Program& program_;
  Kernel& kernel_;
  std::vector<std::vector<Registers>> scopes_;
  size_t first_scope_ = 0;  // of the function that is read
  std::vector<std::pair<std::string, Symbol>> symbols_;
  std::map<uint64_t, uint32_t> constants_;
  std::map<std::string, uint32_t> labels_;
  std::vector<std::pair<size_t, std::string>> jumps_;
  std::string prefix_, return_label_;  // of the function that is read
  uint32_t next_register_ = 0, none_ = 0, line_ = 0, guard_ = Instruction::kNone;
  bool unless_ = false;

  friend class Program;
};

Program::Program(std::string text) : text_(std::move(text)) {
  // .global .align 8 .b8 name[144] = {8, 93, …};
  for (size_t at = 0; (at = text_.find("\n.global", at)) != std::string::npos;) {
    const size_t end = text_.find(';', at);
    const std::string_view statement = std::string_view(text_).substr(at, end - at);
    const size_t values = statement.find('=');
    std::string_view declaration = trimmed(statement.substr(0, values));
    take_word(declaration);
    const Declared one = declared(declaration);
    Variable& variable = variables_.emplace_back();
    variable.name = one.name;
    variable.bytes.resize(one.bytes);
    if (values != std::string_view::npos) {
      if (declaration.find(".b8") == std::string_view::npos)
        fail("not understood: %s", std::string(statement).c_str());
      const size_t brace = statement.find('{', values);
      size_t k = 0;
      for (const std::string_view value :
           split(statement.substr(brace + 1, statement.rfind('}') - brace - 1)))
        variable.bytes.at(k++) = static_cast<unsigned char>(number(value));
    }
    at = end;
  }
  for (size_t at = 0; (at = text_.find("\n.shared", at)) != std::string::npos;) {
    const size_t end = text_.find(';', at);
    std::string_view declaration = trimmed(std::string_view(text_).substr(at, end - at));
    take_word(declaration);
    const Declared one = declared(declaration);
    shared_.push_back({std::string(one.name), std::vector<unsigned char>(one.bytes)});
    at = end;
  }
}

Kernel Program::kernel(std::string_view name) const {
  const size_t entry = text_.find(".entry " + std::string(name) + "(");
  if (entry == std::string::npos) fail("no kernel %s", std::string(name).c_str());
  Kernel kernel;
  kernel.name = name;
  Reader reader(*this, kernel);
  reader.read(entry);
  kernel.static_shared = round_up(kernel.static_shared, 16);
  for (Constant& constant : kernel.constants) {
    if (constant.value == Reader::kDynamicShared) constant.value = kernel.static_shared;
  }
  return kernel;
}

}  // namespace xsr::ptx
