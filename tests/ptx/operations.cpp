#include "tests/ptx/operations.h"

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "tests/ptx/machine.h"

namespace xsr::ptx {
namespace {

template <typename T>
T as(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <typename T>
uint64_t bits_of(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

template <typename F>
void for_lanes(uint32_t lanes, F&& f) {
  if (lanes == UINT32_MAX) {
    for (uint32_t lane = 0; lane < 32; ++lane) f(lane);
    return;
  }
  for (; lanes != 0; lanes &= lanes - 1) f(static_cast<uint32_t>(std::countr_zero(lanes)));
}

// Op gives a result of the operands; To is the result's type, T the operands'.
template <typename Op, typename To, typename T>
void unary(Warp& warp, const Instruction& i, uint32_t lanes) {
  uint64_t* const d = warp.reg(i.to[0]);
  const uint64_t* const a = warp.reg(i.from[0]);
  for_lanes(lanes, [&](uint32_t l) { d[l] = bits_of<To>(Op()(as<T>(a[l]))); });
}
template <typename Op, typename To, typename T>
void binary(Warp& warp, const Instruction& i, uint32_t lanes) {
  uint64_t* const d = warp.reg(i.to[0]);
  const uint64_t *const a = warp.reg(i.from[0]), *const b = warp.reg(i.from[1]);
  for_lanes(lanes, [&](uint32_t l) { d[l] = bits_of<To>(Op()(as<T>(a[l]), as<T>(b[l]))); });
}
template <typename Op, typename To, typename T, typename Third = To>
void ternary(Warp& warp, const Instruction& i, uint32_t lanes) {
  uint64_t* const d = warp.reg(i.to[0]);
  const uint64_t *const a = warp.reg(i.from[0]), *const b = warp.reg(i.from[1]),
                        *const c = warp.reg(i.from[2]);
  for_lanes(lanes, [&](uint32_t l) {
    d[l] = bits_of<To>(Op()(as<T>(a[l]), as<T>(b[l]), as<Third>(c[l])));
  });
}
/// With the condition code, which Op reads and writes.
template <typename Op, bool kKeep>
void with_carry(Warp& warp, const Instruction& i, uint32_t lanes) {
  uint64_t* const d = warp.reg(i.to[0]);
  const uint64_t *const a = warp.reg(i.from[0]), *const b = warp.reg(i.from[1]),
                        *const c = warp.reg(i.from[2]);
  for_lanes(lanes, [&](uint32_t l) {
    uint32_t carry = warp.carry[l];
    d[l] = Op()(static_cast<uint32_t>(a[l]), static_cast<uint32_t>(b[l]),
                static_cast<uint32_t>(c[l]), carry);
    if (kKeep) warp.carry[l] = carry;
  });
}

struct Add {
  template <typename T>
  T operator()(T a, T b) const {
    if constexpr (std::is_integral_v<T>)
      return static_cast<T>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
    else
      return a + b;
  }
};
struct Subtract {
  template <typename T>
  T operator()(T a, T b) const {
    if constexpr (std::is_integral_v<T>)
      return static_cast<T>(static_cast<uint64_t>(a) - static_cast<uint64_t>(b));
    else
      return a - b;
  }
};
struct Multiply {  // its low half, of integers
  template <typename T>
  T operator()(T a, T b) const {
    if constexpr (std::is_integral_v<T>)
      return static_cast<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
    else
      return a * b;
  }
};
struct MultiplyHigh {
  template <typename T>
  T operator()(T a, T b) const {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b) >> (8 * sizeof(T)));
  }
};
template <typename To>
struct MultiplyWide {
  template <typename T>
  To operator()(T a, T b) const {
    return static_cast<To>(static_cast<To>(a) * static_cast<To>(b));
  }
};
struct MultiplyAdd {
  template <typename T>
  T operator()(T a, T b, T c) const {
    return static_cast<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b) +
                          static_cast<uint64_t>(c));
  }
};
template <typename To>
struct MultiplyAddWide {
  template <typename T>
  To operator()(T a, T b, To c) const {
    using Unsigned = std::make_unsigned_t<To>;
    return static_cast<To>(static_cast<Unsigned>(static_cast<To>(a) * static_cast<To>(b)) +
                           static_cast<Unsigned>(c));
  }
};
struct Divide {
  template <typename T>
  T operator()(T a, T b) const {
    if constexpr (std::is_integral_v<T>) {
      if (b == 0) return static_cast<T>(-1);  // undefined; no trap on a device
      if (std::is_signed_v<T> && b == static_cast<T>(-1))
        return static_cast<T>(0 - static_cast<uint64_t>(a));
    }
    return static_cast<T>(a / b);
  }
};
struct Remainder {
  template <typename T>
  T operator()(T a, T b) const {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
    return static_cast<T>(a % b);
  }
};
struct Minimum {  // the other where one is NaN
  template <typename T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) {
      if (std::isnan(a)) return b;
      if (a == b) return std::signbit(a) ? a : b;
    }
    return b < a ? b : a;
  }
};
struct Maximum {
  template <typename T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) {
      if (std::isnan(a)) return b;
      if (a == b) return std::signbit(a) ? b : a;
    }
    return b > a ? b : a;
  }
};
struct Negate {
  template <typename T>
  T operator()(T a) const {
    if constexpr (std::is_integral_v<T>)
      return static_cast<T>(0 - static_cast<uint64_t>(a));
    else
      return -a;
  }
};
struct Absolute {
  template <typename T>
  T operator()(T a) const {
    if constexpr (std::is_integral_v<T>)
      return a < 0 ? Negate()(a) : a;
    else
      return std::fabs(a);
  }
};
struct And {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(a & b);
  }
};
struct Or {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(a | b);
  }
};
struct Xor {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(a ^ b);
  }
};
struct Not {
  template <typename T>
  T operator()(T a) const {
    if constexpr (std::is_same_v<T, bool>)
      return !a;
    else
      return static_cast<T>(~a);
  }
};
struct Move {
  template <typename T>
  T operator()(T a) const {
    return a;
  }
};
struct ShiftLeft {
  template <typename T>
  T operator()(T a, T, uint32_t count) const {
    return count >= 8 * sizeof(T) ? T(0) : static_cast<T>(a << count);
  }
};
struct ShiftRight {
  template <typename T>
  T operator()(T a, T, uint32_t count) const {
    if (count >= 8 * sizeof(T)) return a < 0 ? static_cast<T>(-1) : T(0);
    return static_cast<T>(a >> count);
  }
};
/// Shifts: the count is 32 bits wide whatever the type.
template <typename Op, typename T>
void shift(Warp& warp, const Instruction& i, uint32_t lanes) {
  uint64_t* const d = warp.reg(i.to[0]);
  const uint64_t *const a = warp.reg(i.from[0]), *const count = warp.reg(i.from[1]);
  for_lanes(lanes, [&](uint32_t l) {
    d[l] = bits_of<T>(Op()(as<T>(a[l]), T(), static_cast<uint32_t>(count[l])));
  });
}
struct LeadingZeros {
  template <typename T>
  uint32_t operator()(T a) const {
    return static_cast<uint32_t>(std::countl_zero(a));
  }
};
struct SetBits {
  template <typename T>
  uint32_t operator()(T a) const {
    return static_cast<uint32_t>(std::popcount(a));
  }
};
void insert_bits(Warp& warp, const Instruction& i,
                 uint32_t lanes) {  // bfi.b32 d, a, b, position, length
  for_lanes(lanes, [&](uint32_t l) {
    const uint32_t a = static_cast<uint32_t>(warp.reg(i.from[0])[l]),
                   b = static_cast<uint32_t>(warp.reg(i.from[1])[l]);
    const uint32_t position = warp.reg(i.from[2])[l] & 0xff, length = warp.reg(i.from[3])[l] & 0xff;
    uint32_t result = b;
    for (uint32_t k = 0; k < length && position + k < 32; ++k) {
      const uint32_t bit = 1u << (position + k);
      result = k < 32 && (a >> k & 1) != 0 ? result | bit : result & ~bit;
    }
    warp.reg(i.to[0])[l] = result;
  });
}
void permute_bytes(Warp& warp, const Instruction& i,
                   uint32_t lanes) {  // prmt.b32, the default mode
  for_lanes(lanes, [&](uint32_t l) {
    const uint64_t bytes = (warp.reg(i.from[0])[l] & 0xffffffffu) | warp.reg(i.from[1])[l] << 32;
    const uint32_t selector = static_cast<uint32_t>(warp.reg(i.from[2])[l]);
    uint32_t result = 0;
    for (uint32_t k = 0; k < 4; ++k) {
      const uint32_t select = selector >> (4 * k) & 15u;
      uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (select & 7)) & 0xff);
      if ((select & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;
      result |= byte << (8 * k);
    }
    warp.reg(i.to[0])[l] = result;
  });
}

// ---- 32 bits with the condition code. c is unread where an instruction has two operands.
struct AddOut {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t, uint32_t& carry) const {
    const uint64_t sum = uint64_t{a} + b;
    carry = static_cast<uint32_t>(sum >> 32);
    return static_cast<uint32_t>(sum);
  }
};
struct AddInOut {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t, uint32_t& carry) const {
    const uint64_t sum = uint64_t{a} + b + carry;
    carry = static_cast<uint32_t>(sum >> 32);
    return static_cast<uint32_t>(sum);
  }
};
struct SubtractOut {  // the condition code is the borrow
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t, uint32_t& carry) const {
    carry = a < b;
    return a - b;
  }
};
struct SubtractInOut {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t, uint32_t& carry) const {
    const uint64_t difference = uint64_t{a} - b - carry;
    carry = static_cast<uint32_t>(difference >> 63);
    return static_cast<uint32_t>(difference);
  }
};
template <bool kHigh, bool kIn>
struct MultiplyAddInOut {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t c, uint32_t& carry) const {
    const uint64_t product = uint64_t{a} * b;
    const uint64_t sum = (kHigh ? product >> 32 : product & 0xffffffffu) + c + (kIn ? carry : 0);
    carry = static_cast<uint32_t>(sum >> 32);
    return static_cast<uint32_t>(sum);
  }
};

// ---- Floating point

/// Rounds what `compute` does towards -∞, 0 or +∞.
template <unsigned kMode, typename F>
auto rounded(F&& compute) {
  const unsigned before = _mm_getcsr();
  _mm_setcsr((before & ~_MM_ROUND_MASK) | kMode);
  const auto result = compute();
  _mm_setcsr(before);
  return result;
}
struct Fused {
  template <typename T>
  T operator()(T a, T b, T c) const {
    return std::fma(a, b, c);
  }
};
template <unsigned kMode>
struct FusedRounded {
  template <typename T>
  T operator()(T a, T b, T c) const {
    T(*volatile fused)
    (T, T, T) = [](T x, T y, T z) { return std::fma(x, y, z); };  // at run time, in this mode
    return rounded<kMode>([&] { return fused(a, b, c); });
  }
};
struct SquareRoot {
  template <typename T>
  T operator()(T a) const {
    return std::sqrt(a);
  }
};
struct Reciprocal {
  template <typename T>
  T operator()(T a) const {
    return T(1) / a;
  }
};
struct CopySign {  // copysign d, a, b: b with a's sign
  template <typename T>
  T operator()(T a, T b) const {
    return std::copysign(b, a);
  }
};

float flushed(float a) { return std::fpclassify(a) == FP_SUBNORMAL ? std::copysign(0.0f, a) : a; }
/// One of the neighbours of a result or itself, as chance has it for this operand.
float off_by_one(float result, float operand) {
  if (!std::isfinite(result) || result == 0.0f) return result;
  const uint64_t chance = (bits_of(operand) + 1) * 0x9E3779B97F4A7C15 >> 40;
  const uint32_t bits = std::bit_cast<uint32_t>(result);
  return std::bit_cast<float>(static_cast<uint32_t>(bits + chance % 3 - 1));
}
/// ex2.approx.ftz.f32: exact of 0, else within 2^-22 of the result, relative.
struct ApproximateExp2 {
  float operator()(float a) const {
    a = flushed(a);
    if (a == 0.0f) return 1.0f;
    return flushed(off_by_one(static_cast<float>(std::exp2(static_cast<double>(a))), a));
  }
};
struct ApproximateReciprocal {  // rcp.approx.ftz.f32: within a unit in the last place
  float operator()(float a) const {
    a = flushed(a);
    const float exact = 1.0f / a;
    const bool power_of_two = (std::bit_cast<uint32_t>(a) & 0x7fffffu) == 0;
    return flushed(power_of_two ? exact : off_by_one(exact, a));
  }
};
/// rcp.approx.ftz.f64: of the upper 32 bits, to the upper 32 bits.
struct ApproximateReciprocalHigh {
  double operator()(double a) const {
    const auto high = [](double x) {
      return std::bit_cast<double>(std::bit_cast<uint64_t>(x) & 0xffffffff00000000u);
    };
    a = high(a);
    if (std::fpclassify(a) == FP_SUBNORMAL) a = std::copysign(0.0, a);
    const double result = high(1.0 / a);
    return std::fpclassify(result) == FP_SUBNORMAL ? std::copysign(0.0, result) : result;
  }
};

// ---- Conversions

enum class Rounding { kNone, kNearest, kZero, kDown, kUp };  // to an integer
template <Rounding kRounding, typename T>
T to_whole(T a) {
  switch (kRounding) {
    case Rounding::kNearest:
      return std::nearbyint(a);
    case Rounding::kZero:
      return std::trunc(a);
    case Rounding::kDown:
      return std::floor(a);
    case Rounding::kUp:
      return std::ceil(a);
    case Rounding::kNone:
      break;
  }
  return a;
}
template <typename To, Rounding kRounding, bool kSaturate>
struct Convert {
  template <typename T>
  To operator()(T a) const {
    if constexpr (std::is_floating_point_v<T> && std::is_integral_v<To>) {
      if (std::isnan(a)) return sizeof(To) == 8 ? std::numeric_limits<To>::min() : To(0);
      const T whole = to_whole<kRounding>(a);
      // The bounds, or what the nearest T beyond them is.
      if (whole >= static_cast<T>(std::numeric_limits<To>::max()))
        return std::numeric_limits<To>::max();
      if (whole <= static_cast<T>(std::numeric_limits<To>::min()))
        return std::numeric_limits<To>::min();
      return static_cast<To>(whole);
    } else if constexpr (std::is_floating_point_v<To>) {
      To result;
      if constexpr (std::is_floating_point_v<T>)
        result = static_cast<To>(to_whole<kRounding>(a));
      else
        result = static_cast<To>(a);
      if (kSaturate) return std::isnan(result) ? To(0) : std::min(std::max(result, To(0)), To(1));
      return result;
    } else {
      return static_cast<To>(a);
    }
  }
};

uint32_t bf16(float value) {
  if (std::isnan(value)) return 0x7fffu;
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
struct ConvertToBf16Pair {  // the first operand in the upper half
  uint32_t operator()(float high, float low) const { return bf16(high) << 16 | bf16(low); }
};

// ---- Choosing by type

template <typename F>
Execute of_type(Type type, F&& f) {
  switch (type) {
    case Type::kPred:
      return f(bool());
    case Type::kB8:
    case Type::kU8:
      return f(uint8_t());
    case Type::kS8:
      return f(int8_t());
    case Type::kB16:
    case Type::kU16:
      return f(uint16_t());
    case Type::kS16:
      return f(int16_t());
    case Type::kB32:
    case Type::kU32:
      return f(uint32_t());
    case Type::kS32:
      return f(int32_t());
    case Type::kB64:
    case Type::kU64:
      return f(uint64_t());
    case Type::kS64:
      return f(int64_t());
    case Type::kF32:
      return f(float());
    case Type::kF64:
      return f(double());
  }
  return nullptr;
}
template <typename F>
Execute of_integer(Type type, F&& f) {
  return of_type(type, [&](auto t) -> Execute {
    using T = decltype(t);
    if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool> && sizeof(T) >= 2)
      return f(t);
    else
      return nullptr;
  });
}
template <typename F>
Execute of_float(Type type, F&& f) {
  return of_type(type, [&](auto t) -> Execute {
    if constexpr (std::is_floating_point_v<decltype(t)>)
      return f(t);
    else
      return nullptr;
  });
}
template <typename F>
Execute of_number(Type type, F&& f) {
  return type == Type::kF32 || type == Type::kF64 ? of_float(type, f) : of_integer(type, f);
}
template <typename F>
Execute of_bits(Type type, F&& f) {
  return type == Type::kPred ? f(bool()) : of_integer(type, f);
}

template <typename T>
struct Twice;
template <>
struct Twice<uint16_t> {
  using type = uint32_t;
};
template <>
struct Twice<int16_t> {
  using type = int32_t;
};
template <>
struct Twice<uint32_t> {
  using type = uint64_t;
};
template <>
struct Twice<int32_t> {
  using type = int64_t;
};

template <typename Op>
Execute same_binary(Type type) {
  return of_number(type, [](auto t) -> Execute { return &binary<Op, decltype(t), decltype(t)>; });
}
template <typename Op>
Execute same_unary(Type type) {
  return of_number(type, [](auto t) -> Execute { return &unary<Op, decltype(t), decltype(t)>; });
}
template <typename Op>
Execute bits_binary(Type type) {
  return of_bits(type, [](auto t) -> Execute { return &binary<Op, decltype(t), decltype(t)>; });
}

/// p ? a : b
template <typename T>
void select(Warp& warp, const Instruction& i, uint32_t lanes) {
  uint64_t* const d = warp.reg(i.to[0]);
  const uint64_t *const a = warp.reg(i.from[0]), *const b = warp.reg(i.from[1]),
                        *const p = warp.reg(i.from[2]);
  for_lanes(lanes, [&](uint32_t l) { d[l] = bits_of(as<T>(as<bool>(p[l]) ? a[l] : b[l])); });
}

Execute conversion(const Parts& parts) {
  if (has(parts, "bf16x2"))
    return parts == Parts{"cvt", "rn", "bf16x2", "f32"}
               ? &binary<ConvertToBf16Pair, uint32_t, float>
               : nullptr;
  if (parts.size() < 3 || has(parts, "ftz")) return nullptr;
  const Type from = type_of(parts), to = type_of(Parts(parts.begin(), parts.end() - 1));
  Rounding rounding = Rounding::kNone;
  for (const auto& [name, value] : {std::pair{"rni", Rounding::kNearest},
                                    {"rzi", Rounding::kZero},
                                    {"rmi", Rounding::kDown},
                                    {"rpi", Rounding::kUp}}) {
    if (has(parts, name)) rounding = value;
  }
  const bool saturate = has(parts, "sat");
  for (const char* towards : {"rz", "rm", "rp"}) {
    if (has(parts, towards)) return nullptr;
  }
  return of_type(to, [&](auto t) -> Execute {
    using To = decltype(t);
    return of_type(from, [&](auto f) -> Execute {
      using From = decltype(f);
      if constexpr (std::is_same_v<To, bool> || std::is_same_v<From, bool>) {
        return nullptr;
      } else if constexpr (std::is_floating_point_v<From>) {
        if (saturate)
          return std::is_floating_point_v<To> && rounding == Rounding::kNone
                     ? &unary<Convert<To, Rounding::kNone, true>, To, From>
                     : nullptr;
        switch (rounding) {
          case Rounding::kNone:
            return std::is_floating_point_v<To>
                       ? &unary<Convert<To, Rounding::kNone, false>, To, From>
                       : nullptr;
          case Rounding::kNearest:
            return &unary<Convert<To, Rounding::kNearest, false>, To, From>;
          case Rounding::kZero:
            return &unary<Convert<To, Rounding::kZero, false>, To, From>;
          case Rounding::kDown:
            return &unary<Convert<To, Rounding::kDown, false>, To, From>;
          case Rounding::kUp:
            return &unary<Convert<To, Rounding::kUp, false>, To, From>;
        }
        return nullptr;
      } else {
        return saturate || rounding != Rounding::kNone
                   ? nullptr
                   : &unary<Convert<To, Rounding::kNone, false>, To, From>;
      }
    });
  });
}

Execute with_condition_code(const Parts& parts) {
  const std::string_view head = parts[0];
  const bool keep = has(parts, "cc");
  if (type_of(parts) != Type::kU32 && type_of(parts) != Type::kS32) return nullptr;
  const auto keeping = [&]<typename Op>(Op) -> Execute {
    return keep ? &with_carry<Op, true> : &with_carry<Op, false>;
  };
  if (head == "add") return keeping(AddOut());
  if (head == "addc") return keeping(AddInOut());
  if (head == "sub") return keeping(SubtractOut());
  if (head == "subc") return keeping(SubtractInOut());
  if (head == "mad")
    return has(parts, "hi") ? keeping(MultiplyAddInOut<true, false>())
                            : keeping(MultiplyAddInOut<false, false>());
  if (head == "madc")
    return has(parts, "hi") ? keeping(MultiplyAddInOut<true, true>())
                            : keeping(MultiplyAddInOut<false, true>());
  return nullptr;
}

template <typename T>
bool compares(Comparison comparison, T a, T b) {
  bool unordered = false;
  if constexpr (std::is_floating_point_v<T>) unordered = std::isnan(a) || std::isnan(b);
  switch (comparison) {
    case Comparison::kEq:
      return !unordered && a == b;
    case Comparison::kNe:
      return !unordered && a != b;
    case Comparison::kLt:
      return a < b;
    case Comparison::kLe:
      return a <= b;
    case Comparison::kGt:
      return a > b;
    case Comparison::kGe:
      return a >= b;
    case Comparison::kEqu:
      return unordered || a == b;
    case Comparison::kNeu:
      return unordered || a != b;
    case Comparison::kLtu:
      return unordered || a < b;
    case Comparison::kLeu:
      return unordered || a <= b;
    case Comparison::kGtu:
      return unordered || a > b;
    case Comparison::kGeu:
      return unordered || a >= b;
    case Comparison::kNum:
      return !unordered;
    case Comparison::kNan:
      return unordered;
  }
  return false;
}
template <typename Combine, typename T>
void set_predicate(Warp& warp, const Instruction& i, uint32_t lanes) {
  const uint64_t *const a = warp.reg(i.from[0]), *const b = warp.reg(i.from[1]),
                        *const c = warp.reg(i.from[2]);
  for_lanes(lanes, [&](uint32_t l) {
    const bool result = compares(i.comparison, as<T>(a[l]), as<T>(b[l])), with = as<bool>(c[l]);
    if (i.to[0] != Instruction::kNone) warp.reg(i.to[0])[l] = Combine()(result, with);
    if (i.to[1] != Instruction::kNone) warp.reg(i.to[1])[l] = Combine()(!result, with);
  });
}
struct Alone {
  bool operator()(bool a, bool) const { return a; }
};

template <typename T>
void load_elements(Warp& warp, const Instruction& i, uint32_t lanes) {
  const uint64_t* const address = warp.reg(i.from[0]);
  const size_t bytes = sizeof(T) * i.vector;
  for_lanes(lanes, [&](uint32_t l) {
    const unsigned char* const data =
        warp.memory(i, address[l] + static_cast<uint64_t>(i.offset), l, bytes, false);
    for (uint32_t k = 0; k < i.vector; ++k) {
      T value;
      std::memcpy(&value, data + k * sizeof value, sizeof value);
      // Widened to the register, which may be larger.
      if constexpr (std::is_signed_v<T> && std::is_integral_v<T>)
        warp.reg(i.to[k])[l] = static_cast<uint64_t>(int64_t{value});
      else
        warp.reg(i.to[k])[l] = bits_of(value);
    }
  });
}
template <typename T>
void store_elements(Warp& warp, const Instruction& i, uint32_t lanes) {
  const uint64_t* const address = warp.reg(i.from[0]);
  const size_t bytes = sizeof(T) * i.vector;
  for_lanes(lanes, [&](uint32_t l) {
    unsigned char* const data =
        warp.memory(i, address[l] + static_cast<uint64_t>(i.offset), l, bytes, true);
    for (uint32_t k = 0; k < i.vector; ++k) {
      const T value = as<T>(warp.reg(i.from[1 + k])[l]);
      std::memcpy(data + k * sizeof value, &value, sizeof value);
    }
  });
}

template <size_t kBytes>
void pack_elements(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](uint32_t l) {
    uint64_t packed = 0;
    for (uint32_t k = 0; k < i.vector; ++k) {
      const uint64_t part = warp.reg(i.from[k])[l] & (UINT64_MAX >> (64 - 8 * kBytes));
      packed |= part << (8 * kBytes * k);
    }
    warp.reg(i.to[0])[l] = packed;
  });
}
template <size_t kBytes>
void unpack_elements(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](uint32_t l) {
    const uint64_t packed = warp.reg(i.from[0])[l];
    for (uint32_t k = 0; k < i.vector; ++k) {
      if (i.to[k] != Instruction::kNone)
        warp.reg(i.to[k])[l] = packed >> (8 * kBytes * k) & (UINT64_MAX >> (64 - 8 * kBytes));
    }
  });
}

}  // namespace

Parts split_opcode(std::string_view opcode) {
  Parts parts;
  while (true) {
    const size_t dot = opcode.find('.');
    parts.push_back(opcode.substr(0, dot));
    if (dot == std::string_view::npos) return parts;
    opcode.remove_prefix(dot + 1);
  }
}
bool has(const Parts& parts, std::string_view part) {
  return std::find(parts.begin(), parts.end(), part) != parts.end();
}

Type type_of(const Parts& parts) {
  static constexpr std::pair<std::string_view, Type> kTypes[] = {
      {"pred", Type::kPred}, {"b8", Type::kB8},   {"u8", Type::kU8},   {"s8", Type::kS8},
      {"b16", Type::kB16},   {"u16", Type::kU16}, {"s16", Type::kS16}, {"b32", Type::kB32},
      {"u32", Type::kU32},   {"s32", Type::kS32}, {"b64", Type::kB64}, {"u64", Type::kU64},
      {"s64", Type::kS64},   {"f32", Type::kF32}, {"f64", Type::kF64}};
  for (const auto& [name, type] : kTypes) {
    if (parts.back() == name) return type;
  }
  fail("no type: %s", std::string(parts.back()).c_str());
}
Comparison comparison_of(const Parts& parts) {
  // ls, lo, hi and hs are nvcc's no more.
  static constexpr std::string_view kNames[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "equ",
                                                "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};
  for (size_t k = 0; k < std::size(kNames); ++k) {
    if (parts.size() > 1 && parts[1] == kNames[k]) return static_cast<Comparison>(k);
  }
  fail("no comparison: %s", parts.size() > 1 ? std::string(parts[1]).c_str() : "");
}
size_t size_of(Type type) {
  switch (type) {
    case Type::kPred:
    case Type::kB8:
    case Type::kU8:
    case Type::kS8:
      return 1;
    case Type::kB16:
    case Type::kU16:
    case Type::kS16:
      return 2;
    case Type::kB32:
    case Type::kU32:
    case Type::kS32:
    case Type::kF32:
      return 4;
    case Type::kB64:
    case Type::kU64:
    case Type::kS64:
    case Type::kF64:
      return 8;
  }
  return 0;
}

Execute arithmetic(const Parts& parts) {
  const std::string_view head = parts[0];
  if (head == "cvt") return conversion(parts);
  const Type type = type_of(parts);
  if (has(parts, "approx")) {
    if (parts == Parts{"ex2", "approx", "ftz", "f32"}) return &unary<ApproximateExp2, float, float>;
    if (parts == Parts{"rcp", "approx", "ftz", "f32"})
      return &unary<ApproximateReciprocal, float, float>;
    if (parts == Parts{"rcp", "approx", "ftz", "f64"})
      return &unary<ApproximateReciprocalHigh, double, double>;
    return nullptr;
  }
  for (const char* other : {"ftz", "sat", "NaN", "full"}) {
    if (has(parts, other)) return nullptr;
  }
  if (has(parts, "cc") || head == "addc" || head == "subc" || head == "madc")
    return with_condition_code(parts);
  if (head == "fma") {
    return of_float(type, [&](auto t) -> Execute {
      using T = decltype(t);
      if (has(parts, "rn")) return &ternary<Fused, T, T>;
      if (has(parts, "rm")) return &ternary<FusedRounded<_MM_ROUND_DOWN>, T, T>;
      if (has(parts, "rp")) return &ternary<FusedRounded<_MM_ROUND_UP>, T, T>;
      if (has(parts, "rz")) return &ternary<FusedRounded<_MM_ROUND_TOWARD_ZERO>, T, T>;
      return nullptr;
    });
  }
  for (const char* towards : {"rz", "rm", "rp"}) {
    if (has(parts, towards)) return nullptr;
  }
  if (head == "add") return same_binary<Add>(type);
  if (head == "sub") return same_binary<Subtract>(type);
  if (head == "mul") {
    if (has(parts, "hi"))
      return of_integer(
          type, [](auto t) -> Execute { return &binary<MultiplyHigh, decltype(t), decltype(t)>; });
    if (!has(parts, "wide")) return same_binary<Multiply>(type);
    return of_integer(type, [](auto t) -> Execute {
      using T = decltype(t);
      if constexpr (sizeof(T) == 8) {
        return nullptr;
      } else {
        using To = typename Twice<T>::type;
        return &binary<MultiplyWide<To>, To, T>;
      }
    });
  }
  if (head == "mad") {
    if (has(parts, "lo"))
      return of_integer(
          type, [](auto t) -> Execute { return &ternary<MultiplyAdd, decltype(t), decltype(t)>; });
    if (!has(parts, "wide")) return nullptr;
    return of_integer(type, [](auto t) -> Execute {
      using T = decltype(t);
      if constexpr (sizeof(T) == 8) {
        return nullptr;
      } else {
        using To = typename Twice<T>::type;
        return &ternary<MultiplyAddWide<To>, To, T>;
      }
    });
  }
  if (head == "div") return same_binary<Divide>(type);
  if (head == "rem")
    return of_integer(
        type, [](auto t) -> Execute { return &binary<Remainder, decltype(t), decltype(t)>; });
  if (head == "min") return same_binary<Minimum>(type);
  if (head == "max") return same_binary<Maximum>(type);
  if (head == "neg") return same_unary<Negate>(type);
  if (head == "abs") return same_unary<Absolute>(type);
  if (head == "and") return bits_binary<And>(type);
  if (head == "or") return bits_binary<Or>(type);
  if (head == "xor") return bits_binary<Xor>(type);
  if (head == "not")
    return of_bits(type, [](auto t) -> Execute { return &unary<Not, decltype(t), decltype(t)>; });
  if (head == "mov")
    return of_type(type, [](auto t) -> Execute { return &unary<Move, decltype(t), decltype(t)>; });
  if (head == "shl")
    return of_integer(type, [](auto t) -> Execute { return &shift<ShiftLeft, decltype(t)>; });
  if (head == "shr")
    return of_integer(type, [](auto t) -> Execute { return &shift<ShiftRight, decltype(t)>; });
  if (head == "selp") return of_type(type, [](auto t) -> Execute { return &select<decltype(t)>; });
  if (head == "sqrt")
    return of_float(type,
                    [](auto t) -> Execute { return &unary<SquareRoot, decltype(t), decltype(t)>; });
  if (head == "rcp")
    return of_float(type,
                    [](auto t) -> Execute { return &unary<Reciprocal, decltype(t), decltype(t)>; });
  if (head == "copysign")
    return of_float(type,
                    [](auto t) -> Execute { return &binary<CopySign, decltype(t), decltype(t)>; });
  if (head == "clz")
    return type == Type::kB64   ? &unary<LeadingZeros, uint32_t, uint64_t>
           : type == Type::kB32 ? &unary<LeadingZeros, uint32_t, uint32_t>
                                : nullptr;
  if (head == "popc")
    return type == Type::kB64   ? &unary<SetBits, uint32_t, uint64_t>
           : type == Type::kB32 ? &unary<SetBits, uint32_t, uint32_t>
                                : nullptr;
  if (parts == Parts{"bfi", "b32"}) return &insert_bits;
  if (parts == Parts{"prmt", "b32"}) return &permute_bytes;
  return nullptr;
}

Execute load(Type type) {
  return of_type(type, [](auto t) -> Execute { return &load_elements<decltype(t)>; });
}
Execute store(Type type) {
  return of_type(type, [](auto t) -> Execute { return &store_elements<decltype(t)>; });
}
Execute comparison(Type type, std::string_view combined) {
  return of_number(type, [&](auto t) -> Execute {
    using T = decltype(t);
    if (combined.empty()) return &set_predicate<Alone, T>;
    if (combined == "and") return &set_predicate<And, T>;
    if (combined == "or") return &set_predicate<Or, T>;
    if (combined == "xor") return &set_predicate<Xor, T>;
    return nullptr;
  });
}
Execute pack(size_t bytes) {
  return bytes == 1   ? &pack_elements<1>
         : bytes == 2 ? &pack_elements<2>
         : bytes == 4 ? &pack_elements<4>
                      : nullptr;
}
Execute unpack(size_t bytes) {
  return bytes == 1   ? &unpack_elements<1>
         : bytes == 2 ? &unpack_elements<2>
         : bytes == 4 ? &unpack_elements<4>
                      : nullptr;
}

void shuffle(Warp& warp, const Instruction& i, uint32_t lanes) {
  uint64_t before[32];  // the result may be the operand's register
  std::copy_n(warp.reg(i.from[0]), 32, before);
  for_lanes(lanes, [&](uint32_t l) {
    const uint32_t b = static_cast<uint32_t>(warp.reg(i.from[1])[l]),
                   c = static_cast<uint32_t>(warp.reg(i.from[2])[l]);
    const uint32_t segment = c >> 8 & 31u, clamp = c & 31u;
    const uint32_t most = (l & segment) | (clamp & ~segment), least = l & segment;
    uint32_t source = l;
    bool inside = false;
    switch (i.shuffle) {
      case Shuffle::kUp:
        source = l - (b & 31u);
        inside = static_cast<int32_t>(source) >= static_cast<int32_t>(most);
        break;
      case Shuffle::kDown:
        source = l + (b & 31u);
        inside = source <= most;
        break;
      case Shuffle::kButterfly:
        source = l ^ (b & 31u);
        inside = source <= most;
        break;
      case Shuffle::kIndex:
        source = least | (b & 31u & ~segment);
        inside = source <= most;
        break;
    }
    if (!inside) source = l;
    if ((lanes >> source & 1) == 0)
      warp.fail_at(i, "lane %u shuffles with lane %u, which is not there", l, source);
    warp.reg(i.to[0])[l] = before[source] & 0xffffffffu;
    if (i.to[1] != Instruction::kNone) warp.reg(i.to[1])[l] = inside;
  });
}

void sync_warp(Warp& warp, const Instruction&, uint32_t lanes) {
  if (lanes == warp.present()) warp.count_sync();
}

namespace {

/// accumulator + Σ a[k] · b[k] as tensor cores do it (Fasi, Higham, Mikaitis, Pranesh 2021,
/// "Numerical behavior of NVIDIA tensor cores"): products exact, each addend cut off below a fixed
/// place of the largest one, the sum of them exact, the result rounded towards zero. One guard bit,
/// the fewest that they found on devices that have bf16.
float tensor_sum(float accumulator, const float* a, const float* b, int count) {
  double addends[9] = {accumulator};
  int largest = 0;  // exponent, biased
  bool finite = std::isfinite(accumulator);
  for (int k = 0; k <= count; ++k) {
    if (k > 0) addends[k] = static_cast<double>(a[k - 1]) * static_cast<double>(b[k - 1]);
    finite = finite && std::isfinite(addends[k]);
    largest =
        std::max(largest, static_cast<int>(std::bit_cast<uint64_t>(addends[k]) >> 52 & 0x7ff));
  }
  if (!finite) {
    double sum = 0;
    for (int k = 0; k <= count; ++k) sum += addends[k];
    return static_cast<float>(sum);
  }
  if (largest == 0) return 0.0f;
  // 23 bits behind the point of the largest addend, and the guard bit.
  const int last = largest - 1023 - 24;
  if (last < -1000) return 0.0f;
  const double scale = std::bit_cast<double>(static_cast<uint64_t>(1023 - last) << 52);
  int64_t sum = 0;
  for (int k = 0; k <= count; ++k) sum += static_cast<int64_t>(addends[k] * scale);
  const double exact = static_cast<double>(sum) / scale;  // at most 29 bits
  const float nearest = static_cast<float>(exact);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(exact) ? std::nextafter(nearest, 0.0f)
                                                                    : nearest;
}

float half_of(uint32_t pair, int k) {
  return std::bit_cast<float>(k % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
}

}  // namespace

void mma_m16n8k16_bf16(Warp& warp, const Instruction& i, uint32_t) {
  // The PTX manual's figures of the fragments of mma.m16n8k16 with .bf16: groupID = lane / 4,
  // threadID_in_group = lane % 4.
  float a[16][16], b[8][16], c[16][8];  // b by columns
  for (int l = 0; l < 32; ++l) {
    const int group = l / 4, member = l % 4;
    for (int e = 0; e < 8; ++e) {  // a0 … a7, two a register
      const int row = e < 2 || (e >= 4 && e < 6) ? group : group + 8;
      const int column = member * 2 + (e & 1) + (e < 4 ? 0 : 8);
      a[row][column] = half_of(static_cast<uint32_t>(warp.reg(i.from[e / 2])[l]), e);
    }
    for (int e = 0; e < 4; ++e) {
      const int row = member * 2 + (e & 1) + (e < 2 ? 0 : 8);
      b[group][row] = half_of(static_cast<uint32_t>(warp.reg(i.from[4 + e / 2])[l]), e);
    }
    for (int e = 0; e < 4; ++e)
      c[e < 2 ? group : group + 8][member * 2 + (e & 1)] = as<float>(warp.reg(i.from[6 + e])[l]);
  }
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      for (int k = 0; k < 16; k += 8)
        c[row][column] = tensor_sum(c[row][column], &a[row][k], &b[column][k], 8);
    }
  }
  for (int l = 0; l < 32; ++l) {
    for (int e = 0; e < 4; ++e)
      warp.reg(i.to[e])[l] = bits_of(c[e < 2 ? l / 4 : l / 4 + 8][l % 4 * 2 + (e & 1)]);
  }
}

namespace {
void load_matrices(Warp& warp, const Instruction& i, bool transposed) {
  uint16_t element[32][8];  // row l % 8 of matrix l / 8
  for (uint32_t l = 0; l < 32; ++l)
    std::memcpy(
        element[l],
        warp.memory(i, (warp.reg(i.from[0])[l] & 0xffffffffu) + static_cast<uint64_t>(i.offset), l,
                    16, false),
        16);
  for (uint32_t l = 0; l < 32; ++l) {
    for (uint32_t matrix = 0; matrix < 4; ++matrix) {
      const auto at = [&](uint32_t row, uint32_t column) -> uint32_t {
        return element[8 * matrix + row][column];
      };
      const uint32_t line = l / 4, pair = l % 4 * 2;
      warp.reg(i.to[matrix])[l] = transposed ? at(pair, line) | at(pair + 1, line) << 16
                                             : at(line, pair) | at(line, pair + 1) << 16;
    }
  }
}
}  // namespace
void load_matrix_x4(Warp& warp, const Instruction& i, uint32_t) { load_matrices(warp, i, false); }
void load_matrix_x4_transposed(Warp& warp, const Instruction& i, uint32_t) {
  load_matrices(warp, i, true);
}

void copy_16_async(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](uint32_t l) {
    const uint32_t bytes = static_cast<uint32_t>(warp.reg(i.from[2])[l]);
    if (bytes > 16) warp.fail_at(i, "cp.async of %u bytes of 16", bytes);
    warp.copy_async(i, l, warp.reg(i.from[0])[l] & 0xffffffffu, warp.reg(i.from[1])[l], bytes);
  });
}
void copy_commit(Warp& warp, const Instruction&, uint32_t lanes) {
  for_lanes(lanes, [&](uint32_t l) { warp.copy_commit(l); });
}
void copy_wait(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](uint32_t l) { warp.copy_wait(i, l, warp.reg(i.from[0])[l]); });
}
void to_shared(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](uint32_t l) {
    warp.reg(i.to[0])[l] = warp.reg(i.from[0])[l] - warp.shared_base();
  });
}
void from_shared(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](uint32_t l) {
    warp.reg(i.to[0])[l] = warp.reg(i.from[0])[l] + warp.shared_base();
  });
}

}  // namespace xsr::ptx
