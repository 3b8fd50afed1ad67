// The machine that carries PTX out (tests/ptx) against the PTX manual, and against kernels that are
// wrong on purpose. Without this a green run of the kernels' tests over it would say little.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "tests/ptx/machine.h"

namespace xsr::ptx {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

template <typename T>
uint64_t bits(T value) {
  uint64_t result = 0;
  std::memcpy(&result, &value, sizeof value);
  return result;
}

/// A module of one kernel `k` that gets the address of the threads' inputs and of their results;
/// %rd0 and %rd1 hold those of the thread's own. `outside` stands before it.
std::string module(const std::string& body, size_t input_bytes, size_t result_bytes,
                   const std::string& outside = "") {
  return ".version 9.0\n.target sm_80\n.address_size 64\n" + outside +
         "\n.visible .entry k(\n\t.param .u64 k_param_0,\n\t.param .u64 k_param_1\n)\n"
         "{\n\t.reg .pred %p<9>;\n\t.reg .b16 %rs<9>;\n\t.reg .b32 %r<99>;\n\t.reg .f32 %f<99>;\n"
         "\t.reg .b64 %rd<9>;\n\t.reg .f64 %fd<9>;\n"
         "\tld.param.u64 %rd0, [k_param_0];\n\tld.param.u64 %rd1, [k_param_1];\n"
         "\tmov.u32 %r0, %tid.x;\n"
         "\tmad.wide.u32 %rd0, %r0, " +
         std::to_string(input_bytes) + ", %rd0;\n\tmad.wide.u32 %rd1, %r0, " +
         std::to_string(result_bytes) + ", %rd1;\n" + body + "\n\tret;\n}\n";
}

/// Runs it by one block of so many threads; inputs [threads · n], results [threads · count].
template <typename R, typename T>
std::vector<R> run_threads(const std::string& body, const std::vector<T>& inputs, uint32_t threads,
                           size_t count = 1, size_t shared = 0, const std::string& outside = "",
                           uint64_t seed = 0) {
  std::vector<R> results(threads * count);
  const Program program(
      module(body, inputs.size() / threads * sizeof(T), count * sizeof(R), outside));
  const Kernel kernel = program.kernel("k");
  std::vector<unsigned char> parameters(kernel.parameter_bytes);
  const void *in = inputs.data(), *out = results.data();
  std::memcpy(parameters.data(), &in, 8);
  std::memcpy(parameters.data() + 8, &out, 8);
  run(kernel, {1, 1, 1}, {threads, 1, 1}, shared, parameters, seed);
  return results;
}

/// What `instruction` makes of %rd2, %rd3, %rd4 (or the registers of other types of those numbers,
/// which hold the same bits) in %rd5, %r5 …
uint64_t result_of(const std::string& instruction, uint64_t a, uint64_t b = 0, uint64_t c = 0) {
  std::string body =
      "\tld.global.u64 %rd2, [%rd0];\n\tld.global.u64 %rd3, [%rd0+8];\n\tld.global.u64 %rd4, "
      "[%rd0+16];\n\tmov.u64 %rd5, 0;\n";
  for (const char* k : {"2", "3", "4"}) {
    const std::string n(k);
    body += "\tcvt.u32.u64 %r" + n + ", %rd" + n + ";\n\tcvt.u16.u64 %rs" + n + ", %rd" + n +
            ";\n\tmov.b32 %f" + n + ", %r" + n + ";\n\tmov.b64 %fd" + n + ", %rd" + n +
            ";\n\tsetp.ne.s32 %p" + n + ", %r" + n + ", 0;\n";
  }
  body += "\t" + instruction + ";\n";
  const std::string to = instruction.substr(instruction.find('%'));
  const std::string name = to.substr(0, to.find_first_of(",|"));
  if (name[1] == 'f' && name[2] != 'd')
    body += "\tmov.b32 %r6, " + name + ";\n\tcvt.u64.u32 %rd5, %r6;\n";
  if (name[1] == 'f' && name[2] == 'd') body += "\tmov.b64 %rd5, " + name + ";\n";
  if (name[1] == 'r' && name[2] == 's') body += "\tcvt.u64.u16 %rd5, " + name + ";\n";
  if (name[1] == 'r' && std::isdigit(name[2])) body += "\tcvt.u64.u32 %rd5, " + name + ";\n";
  if (name[1] == 'p') body += "\tselp.u64 %rd5, 1, 0, " + name + ";\n";
  body += "\tst.global.u64 [%rd1], %rd5;";
  return run_threads<uint64_t, uint64_t>(body, {a, b, c}, 1)[0];
}
float float_of(const std::string& instruction, float a, float b = 0, float c = 0) {
  return std::bit_cast<float>(
      static_cast<uint32_t>(result_of(instruction, bits(a), bits(b), bits(c))));
}
double double_of(const std::string& instruction, double a, double b = 0, double c = 0) {
  return std::bit_cast<double>(result_of(instruction, bits(a), bits(b), bits(c)));
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNan = std::nanf("");

TEST(Ptx, Integers) {
  EXPECT_EQ(2u, result_of("add.s32 %r5, %r2, %r3", 0xffffffff, 3));
  EXPECT_EQ(uint64_t{2} << 32, result_of("add.s64 %rd5, %rd2, %rd3", 0xffffffff, 0x100000001));
  EXPECT_EQ(0xfffeu, result_of("sub.s16 %rs5, %rs2, %rs3", 1, 3));
  EXPECT_EQ(0xfffffff1u, result_of("mul.lo.s32 %r5, %r2, %r3", 0xfffffffb, 3));
  EXPECT_EQ(static_cast<uint64_t>(-15), result_of("mul.wide.s32 %rd5, %r2, %r3", 0xfffffffb, 3));
  EXPECT_EQ(0x2fffffff1u, result_of("mul.wide.u32 %rd5, %r2, %r3", 0xfffffffb, 3));
  EXPECT_EQ(0xfffe0001u, result_of("mul.wide.u16 %r5, %rs2, %rs3", 0xffff, 0xffff));
  EXPECT_EQ(0xfffffffeu, result_of("mul.hi.u32 %r5, %r2, %r3", 0xffffffff, 0xffffffff));
  EXPECT_EQ(0u, result_of("mul.hi.s32 %r5, %r2, %r3", 0xffffffff, 0xffffffff));
  EXPECT_EQ(22u, result_of("mad.lo.s32 %r5, %r2, %r3, %r4", 5, 3, 7));
  EXPECT_EQ(0x200000000u, result_of("mad.wide.u32 %rd5, %r2, 2, %rd3", 0xffffffff, 2));
  EXPECT_EQ(0xfffffffeu, result_of("div.s32 %r5, %r2, %r3", 0xfffffffb, 2));  // towards 0
  EXPECT_EQ(0xffffffffu, result_of("rem.s32 %r5, %r2, %r3", 0xfffffffb, 2));
  EXPECT_EQ(0x7ffffffdu, result_of("div.u32 %r5, %r2, %r3", 0xfffffffb, 2));
  EXPECT_EQ(0xfffffffbu, result_of("min.s32 %r5, %r2, %r3", 0xfffffffb, 2));
  EXPECT_EQ(2u, result_of("min.u32 %r5, %r2, %r3", 0xfffffffb, 2));
  EXPECT_EQ(2u, result_of("max.s32 %r5, %r2, %r3", 0xfffffffb, 2));
  EXPECT_EQ(5u, result_of("neg.s32 %r5, %r2", 0xfffffffb));
  EXPECT_EQ(5u, result_of("abs.s32 %r5, %r2", 0xfffffffb));
  EXPECT_EQ(0x0f00u, result_of("and.b32 %r5, %r2, %r3", 0xff00, 0x0ff0));
  EXPECT_EQ(0xffffffffffff0000u, result_of("not.b64 %rd5, %rd2", 0xffff));
  EXPECT_EQ(1u, result_of("xor.pred %p5, %p2, %p3", 1, 0));
  EXPECT_EQ(0u, result_of("and.pred %p5, %p2, %p3", 1, 0));
  EXPECT_EQ(1u, result_of("or.pred %p5, %p2, %p3", 1, 0));
  EXPECT_EQ(0u, result_of("not.pred %p5, %p2", 1));
  // Counts beyond the width empty the register, or leave the sign.
  EXPECT_EQ(0x80000000u, result_of("shl.b32 %r5, %r2, %r3", 1, 31));
  EXPECT_EQ(0u, result_of("shl.b32 %r5, %r2, %r3", 1, 32));
  EXPECT_EQ(0u, result_of("shr.u32 %r5, %r2, %r3", 0x80000000, 33));
  EXPECT_EQ(0xffffffffu, result_of("shr.s32 %r5, %r2, %r3", 0x80000000, 33));
  EXPECT_EQ(1u, result_of("shr.u64 %rd5, %rd2, 63", uint64_t{1} << 63));
  EXPECT_EQ(0x7fu, result_of("shr.u16 %rs5, %rs2, 9", 0xffff));
  EXPECT_EQ(0xffffau | 0xff000000u,
            result_of("bfi.b32 %r5, %r2, %r3, 4, 8", 0xf0000ff, 0xff0ff00a));
  EXPECT_EQ(31u, result_of("clz.b32 %r5, %r2", 1));
  EXPECT_EQ(64u, result_of("clz.b64 %r5, %rd2", 0));
  EXPECT_EQ(3u, result_of("popc.b32 %r5, %r2", 0x80000011));
  EXPECT_EQ(0x11772233u, result_of("prmt.b32 %r5, %r2, %r3, %r4", 0x00112233, 0x44556677, 0x2410));
  EXPECT_EQ(7u, result_of("selp.b32 %r5, %r2, %r3, %p4", 7, 8, 1));
  EXPECT_EQ(8u, result_of("selp.b32 %r5, %r2, %r3, %p4", 7, 8, 0));
}

TEST(Ptx, ComparisonsAndNaN) {
  const auto holds = [](const std::string& name, float a, float b) {
    return result_of("setp." + name + ".f32 %p5, %f2, %f3", bits(a), bits(b)) == 1;
  };
  for (const char* name : {"eq", "ne", "lt", "le", "gt", "ge", "num"}) {
    EXPECT_FALSE(holds(name, kNan, 1)) << name;
    EXPECT_FALSE(holds(name, 1, kNan)) << name;
  }
  for (const char* name : {"equ", "neu", "ltu", "leu", "gtu", "geu", "nan"})
    EXPECT_TRUE(holds(name, kNan, 1)) << name;
  EXPECT_TRUE(holds("eq", 0.0f, -0.0f));
  EXPECT_TRUE(holds("neu", 1, 2));
  EXPECT_FALSE(holds("ltu", 2, 1));
  EXPECT_TRUE(holds("num", 1, 2));
  EXPECT_EQ(1u, result_of("setp.lt.s32 %p5, %r2, %r3", 0xffffffff, 0));
  EXPECT_EQ(0u, result_of("setp.lt.u32 %p5, %r2, %r3", 0xffffffff, 0));
  EXPECT_EQ(1u, result_of("setp.lt.and.s32 %p5, %r2, %r3, %p4", 1, 2, 1));
  EXPECT_EQ(0u, result_of("setp.lt.and.s32 %p5, %r2, %r3, %p4", 1, 2, 0));
  EXPECT_EQ(
      1u,
      result_of("setp.lt.s32 %p6|%p5, %r2, %r3;\n\tmov.pred %p6, %p5;\n\tmov.pred %p7, %p6", 2, 1));
}

TEST(Ptx, FloatingPoint) {
  EXPECT_EQ(0x1p-149f, float_of("mul.f32 %f5, %f2, %f3", 0x1p-100f, 0x1p-49f));  // not flushed
  EXPECT_EQ(0x1p-46f,
            float_of("fma.rn.f32 %f5, %f2, %f3, %f4", 1 + 0x1p-23f, 1 + 0x1p-23f, -1 - 0x1p-22f));
  const float third = 1.0f / 3;
  const double exact = static_cast<double>(third) * third + 1;
  EXPECT_LE(float_of("fma.rm.f32 %f5, %f2, %f3, %f4", third, third, 1), exact);
  EXPECT_GE(float_of("fma.rp.f32 %f5, %f2, %f3, %f4", third, third, 1), exact);
  EXPECT_LT(float_of("fma.rm.f32 %f5, %f2, %f3, %f4", third, third, 1),
            float_of("fma.rp.f32 %f5, %f2, %f3, %f4", third, third, 1));
  EXPECT_LE(float_of("fma.rm.f32 %f5, %f2, %f3, %f4", third, -third, -1), -exact);
  EXPECT_GE(float_of("fma.rz.f32 %f5, %f2, %f3, %f4", third, -third, -1), -exact);
  EXPECT_EQ(1.0f, float_of("max.f32 %f5, %f2, %f3", kNan, 1));
  EXPECT_EQ(1.0f, float_of("min.f32 %f5, %f2, %f3", 1, kNan));
  EXPECT_TRUE(std::isnan(float_of("max.f32 %f5, %f2, %f3", kNan, kNan)));
  EXPECT_FALSE(std::signbit(float_of("max.f32 %f5, %f2, %f3", -0.0f, 0.0f)));
  EXPECT_EQ(-3.0f, float_of("copysign.f32 %f5, %f2, %f3", -0.0f, 3));
  EXPECT_EQ(third, float_of("div.rn.f32 %f5, %f2, %f3", 1, 3));
  EXPECT_EQ(third, float_of("rcp.rn.f32 %f5, %f2", 3));
  EXPECT_EQ(3.0, double_of("sqrt.rn.f64 %fd5, %fd2", 9));
  EXPECT_EQ(-7.0, double_of("sub.f64 %fd5, %fd2, %fd3", -8, -1));
  EXPECT_EQ(1.5f, float_of("mov.f32 %f5, 0f3FC00000", 0));
  EXPECT_EQ(1.5, double_of("mov.f64 %fd5, 0d3FF8000000000000", 0));
  for (float x = -30; x < 30; x += 0.37f) {
    const float found = float_of("ex2.approx.ftz.f32 %f5, %f2", x);
    EXPECT_NEAR(found, std::exp2(static_cast<double>(x)), 0x1p-22 * std::exp2(x)) << x;
  }
  EXPECT_EQ(1.0f, float_of("ex2.approx.ftz.f32 %f5, %f2", 0));
  EXPECT_EQ(0.0f, float_of("ex2.approx.ftz.f32 %f5, %f2", -kInfinity));
  EXPECT_EQ(0.0f, float_of("ex2.approx.ftz.f32 %f5, %f2", -127));  // subnormal
  EXPECT_EQ(kInfinity, float_of("ex2.approx.ftz.f32 %f5, %f2", 128));
  int different = 0;
  for (float x = 1; x < 30; x += 0.37f) {
    const float found = float_of("rcp.approx.ftz.f32 %f5, %f2", x);
    EXPECT_NEAR(found, 1 / x, 0x1p-23f / x) << x;
    different += found != 1 / x;
  }
  EXPECT_GT(different, 0);  // an approximation is one here
  EXPECT_NEAR(double_of("rcp.approx.ftz.f64 %fd5, %fd2", 3), 1.0 / 3, 0x1p-20);
  EXPECT_EQ(0u, result_of("rcp.approx.ftz.f64 %fd5, %fd2", bits(3.0)) & 0xffffffffu);
}

TEST(Ptx, Conversions) {
  EXPECT_EQ(static_cast<uint64_t>(-5), result_of("cvt.s64.s32 %rd5, %r2", 0xfffffffb));
  EXPECT_EQ(0xfffffffbu, result_of("cvt.u64.u32 %rd5, %r2", 0xfffffffb));
  EXPECT_EQ(0x2345u, result_of("cvt.u16.u32 %rs5, %r2", 0x12345));
  EXPECT_EQ(-5.0f, std::bit_cast<float>(
                       static_cast<uint32_t>(result_of("cvt.rn.f32.s32 %f5, %r2", 0xfffffffb))));
  EXPECT_EQ(0x1p24f, std::bit_cast<float>(static_cast<uint32_t>(
                         result_of("cvt.rn.f32.s32 %f5, %r2", (1 << 24) + 1))));
  EXPECT_EQ(2u, result_of("cvt.rni.s32.f32 %r5, %f2", bits(2.5f)));
  EXPECT_EQ(0xfffffffeu, result_of("cvt.rzi.s32.f32 %r5, %f2", bits(-2.9f)));
  EXPECT_EQ(0x7fffffffu, result_of("cvt.rzi.s32.f32 %r5, %f2", bits(1e20f)));
  EXPECT_EQ(0u, result_of("cvt.rzi.u32.f32 %r5, %f2", bits(-3.0f)));
  EXPECT_EQ(0u, result_of("cvt.rzi.s32.f32 %r5, %f2", bits(kNan)));
  EXPECT_EQ(-2.0f, float_of("cvt.rzi.f32.f32 %f5, %f2", -2.9f));
  EXPECT_EQ(-3.0f, float_of("cvt.rmi.f32.f32 %f5, %f2", -2.1f));
  EXPECT_EQ(1.0f, float_of("cvt.sat.f32.f32 %f5, %f2", 7));
  EXPECT_EQ(0.0f, float_of("cvt.sat.f32.f32 %f5, %f2", kNan));
  EXPECT_EQ(bits(0.1f), result_of("cvt.rn.f32.f64 %f5, %fd2", bits(0.1)));
  EXPECT_EQ(bits(double{0.1f}), result_of("cvt.f64.f32 %fd5, %f2", bits(0.1f)));
  // The first in the upper half; to nearest, ties to even; NaN is 0x7fff.
  EXPECT_EQ(0x3f804000u,
            result_of("cvt.rn.bf16x2.f32 %r5, %f2, %f3", bits(1 + 0x1p-8f), bits(2.0f)));
  EXPECT_EQ(0x3f827fffu,
            result_of("cvt.rn.bf16x2.f32 %r5, %f2, %f3", bits(1 + 0x1.8p-7f), bits(-kNan)));
}

TEST(Ptx, MovesOfParts) {
  EXPECT_EQ(0x0000000700000005u, result_of("mov.b64 %rd5, {%r2, %r3}", 5, 7));
  EXPECT_EQ(0x00070005u, result_of("mov.b32 %r5, {%rs2, %rs3}", 5, 7));
  EXPECT_EQ(7u, result_of("mov.b64 {%r6, %r5}, %rd2;\n\tmov.u32 %r7, %r5;\n\tmov.u32 %r6, %r7",
                          0x0000000700000005u));
}

TEST(Ptx, CarryOverSeveralWords) {
  const std::string body =
      "\tld.global.u64 %rd2, [%rd0];\n\tld.global.u64 %rd3, [%rd0+8];\n"
      "\t{\n\t.reg .u32 %r0, %r1, %r2, %r3, %r4, %r5;\n"  // others than those outside
      "\tmov.b64 {%r0, %r1}, %rd2;\n\tmov.b64 {%r2, %r3}, %rd3;\n"
      "\tadd.cc.u32 %r4, %r0, %r2;\n\taddc.u32 %r5, %r1, %r3;\n\tmov.b64 %rd4, {%r4, %r5};\n"
      "\tsub.cc.u32 %r4, %r0, %r2;\n\tsubc.u32 %r5, %r1, %r3;\n\tmov.b64 %rd5, {%r4, %r5};\n"
      "\tmad.lo.cc.u32 %r4, %r0, %r2, %r3;\n\tmadc.hi.u32 %r5, %r0, %r2, 0;\n"
      "\tmov.b64 %rd6, {%r4, %r5};\n\t}\n"
      "\tst.global.u64 [%rd1], %rd4;\n\tst.global.u64 [%rd1+8], %rd5;\n"
      "\tst.global.u64 [%rd1+16], %rd6;";
  const uint64_t a = 0x00000003ffffffff, b = 0x00000007fffffffe;
  EXPECT_THAT((run_threads<uint64_t, uint64_t>(body, {a, b}, 1, 3)),
              ElementsAre(a + b, a - b, 0xffffffffu * uint64_t{0xfffffffe} + 7));
}

TEST(Ptx, MemoryByVectorsAndSigns) {
  // u8 and s8 in one register; four floats at once; parts of an address.
  const std::string body =
      "\tld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%rd0];\n\tst.global.v2.f32 [%rd1], {%f3, %f1};\n"
      "\tld.global.s8 %rs1, [%rd0+16];\n\tcvt.s32.s16 %r5, %rs1;\n\tst.global.u32 [%rd1+8], %r5;\n"
      "\tadd.s64 %rd3, %rd0, 20;\n\tld.global.u8 %rs1, [%rd3+-4];\n\tcvt.u32.u16 %r5, %rs1;\n"
      "\tst.global.u32 [%rd1+12], %r5;";
  EXPECT_THAT((run_threads<uint32_t, uint32_t>(body, {1, 2, 3, 4, 0xfe}, 1, 4)),
              ElementsAre(4u, 2u, 0xfffffffeu, 0xfeu));
}

TEST(Ptx, VariablesInEverySpace) {
  const std::string outside =
      ".global .align 8 .b8 table[16] = {1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1};\n"
      ".shared .align 4 .b8 common[128];\n"
      ".extern .shared .align 16 .b8 dynamic[];\n";
  const std::string body =
      "\t.local .align 16 .b8 depot[16];\n\t.shared .align 4 .b8 own[4];\n"
      "\tmov.u64 %rd2, table;\n\tld.global.nc.u64 %rd3, [%rd2+8];\n"
      "\tst.global.u64 [%rd1], %rd3;\n"
      // Each thread its own
      "\tmov.u64 %rd4, depot;\n\tst.local.u32 [%rd4+4], %r0;\n\tld.local.u32 %r1, [depot+4];\n"
      "\tst.global.u32 [%rd1+8], %r1;\n"
      // One behind the other; by a 32-bit address, and by a generic one
      "\tmov.u32 %r2, own;\n\tmov.u32 %r3, common;\n\tmov.u32 %r4, dynamic;\n"
      "\tsub.s32 %r5, %r4, %r3;\n\tst.global.u32 [%rd1+12], %r5;\n"
      "\tshl.b32 %r6, %r0, 2;\n\tadd.s32 %r7, %r4, %r6;\n\tst.shared.u32 [%r7], %r0;\n"
      "\tcvt.u64.u32 %rd5, %r7;\n\tcvta.shared.u64 %rd6, %rd5;\n\tld.u32 %r8, [%rd6];\n"
      "\tst.global.u32 [%rd1+16], %r8;\n\tcvta.to.shared.u64 %rd7, %rd6;\n"
      "\tsub.s64 %rd7, %rd7, %rd5;\n\tst.global.u32 [%rd1+20], %rd7;";
  const auto found = run_threads<uint32_t, uint32_t>(body, {0, 0}, 2, 6, 8, outside);
  EXPECT_THAT(found, ElementsAre(2u, 0x100u, 0u, 128u, 0u, 0u, 2u, 0x100u, 1u, 128u, 1u, 0u));
}

TEST(Ptx, ACallIsItsFunctionWithRegistersOfItsOwn) {
  const std::string outside =
      ".func (.param .b32 func_retval0) twice_or_zero\n(\n\t.param .b32 twice_param_0\n)\n;\n"
      ".func (.param .b32 func_retval0) twice_or_zero(\n\t.param .b32 twice_param_0\n)\n{\n"
      "\t.reg .b32 %r<3>;\n\t.reg .pred %p<2>;\n\tld.param.u32 %r1, [twice_param_0];\n"
      "\tsetp.gt.u32 %p1, %r1, 9;\n\t@%p1 bra $L_big;\n\tadd.s32 %r2, %r1, %r1;\n"
      "\tst.param.b32 [func_retval0+0], %r2;\n\tret;\n$L_big:\n"
      "\tst.param.b32 [func_retval0+0], 0;\n\tret;\n}\n";
  std::string body = "\tld.global.u32 %r1, [%rd0];\n\tmov.u32 %r2, 77;\n";
  for (int k = 0; k < 2; ++k) {  // twice, each with labels of its own
    body +=
        "\t{ // callseq\n\t.param .b32 param0;\n\tst.param.b32 [param0+0], %r1;\n"
        "\t.param .b32 retval0;\n\tcall.uni (retval0), \n\ttwice_or_zero, \n\t(\n\tparam0\n\t);\n"
        "\tld.param.b32 %r1, [retval0+0];\n\t} // callseq\n";
  }
  body += "\tst.global.v2.u32 [%rd1], {%r1, %r2};";
  EXPECT_THAT((run_threads<uint32_t, uint32_t>(body, {1, 4, 8}, 3, 2, 0, outside)),
              ElementsAre(4u, 77u, 16u, 77u, 0u, 77u));
}

TEST(Ptx, LanesThatBranchApartComeTogether) {
  // Collatz steps of each lane, then the sum of all 32 by a butterfly, which all must reach.
  const std::string body =
      "\tld.global.u32 %r1, [%rd0];\n\tmov.u32 %r2, 0;\n"
      "$L_loop:\n\tsetp.eq.s32 %p1, %r1, 1;\n\t@%p1 bra $L_end;\n\tadd.s32 %r2, %r2, 1;\n"
      "\tand.b32 %r3, %r1, 1;\n\tsetp.ne.s32 %p2, %r3, 0;\n\t@%p2 bra $L_odd;\n"
      "\tshr.u32 %r1, %r1, 1;\n\tbra.uni $L_loop;\n"
      "$L_odd:\n\tmad.lo.s32 %r1, %r1, 3, 1;\n\tbra.uni $L_loop;\n"
      "$L_end:\n\tmov.u32 %r4, %r2;\n" +
      [] {
        std::string sum;
        for (const char* offset : {"16", "8", "4", "2", "1"}) {
          sum += "\tshfl.sync.bfly.b32 %r5|%p3, %r4, " + std::string(offset) +
                 ", 31, -1;\n\tadd.s32 %r4, %r4, %r5;\n";
        }
        return sum;
      }() +
      "\tst.global.v2.u32 [%rd1], {%r2, %r4};";
  std::vector<uint32_t> inputs, wanted;
  uint32_t sum = 0;
  for (uint32_t k = 1; k <= 32; ++k) inputs.push_back(k);
  for (uint32_t k = 1; k <= 32; ++k) {
    uint32_t steps = 0;
    for (uint32_t n = k; n != 1; n = n % 2 == 0 ? n / 2 : 3 * n + 1) ++steps;
    wanted.push_back(steps);
    wanted.push_back(0);
    sum += steps;
  }
  for (size_t k = 1; k < wanted.size(); k += 2) wanted[k] = sum;
  EXPECT_EQ(wanted, (run_threads<uint32_t>(body, inputs, 32, 2)));
}

TEST(Ptx, ShufflesAsTheManualSays) {
  const auto shuffled = [](const std::string& kind, const std::string& b, const std::string& c) {
    const auto pairs = run_threads<uint32_t>("\tmov.u32 %r1, %laneid;\n\tshfl.sync." + kind +
                                                 ".b32 %r2|%p1, %r1, " + b + ", " + c +
                                                 ", -1;\n\tselp.u32 %r3, 100, 0, %p1;\n"
                                                 "\tadd.s32 %r2, %r2, %r3;\n"
                                                 "\tst.global.u32 [%rd1], %r2;",
                                             std::vector<uint32_t>(32), 32);
    return pairs;
  };
  for (uint32_t lane = 0; lane < 32; ++lane) {
    // Plus 100 where the source is in range; else the lane's own value. Segments of 8: c = 0x181f.
    EXPECT_EQ(lane + 3 < 32 ? lane + 103 : lane, shuffled("down", "3", "31")[lane]);
    EXPECT_EQ(lane >= 3 ? lane + 97 : lane, shuffled("up", "3", "0")[lane]);
    EXPECT_EQ((lane ^ 5) + 100, shuffled("bfly", "5", "31")[lane]);
    EXPECT_EQ(lane / 8 * 8 + 102, shuffled("idx", "10", "0x181f")[lane]);
    EXPECT_EQ(lane % 8 + 3 < 8 ? lane + 103 : lane, shuffled("down", "3", "0x181f")[lane]);
    EXPECT_EQ(lane % 8 >= 3 ? lane + 97 : lane, shuffled("up", "3", "0x1800")[lane]);
  }
}

/// a [16, 16] · b [16, 8] + c of whole numbers is exact, whoever holds which.
TEST(Ptx, TensorCoresMultiply) {
  // Every lane's fragments as the manual's tables give them: registers of pairs, low half first.
  std::vector<uint32_t> inputs(32 * 10);
  std::vector<float> wanted(32 * 4);
  const auto a = [](int row, int k) { return static_cast<float>((row * 5 + k * 3) % 13 - 6); };
  const auto b = [](int k, int column) {
    return static_cast<float>((k * 7 + column * 4) % 11 - 5);
  };
  const auto c = [](int row, int column) { return static_cast<float>(row * 8 + column); };
  const auto pair = [](float low, float high) {
    return std::bit_cast<uint32_t>(low) >> 16 | (std::bit_cast<uint32_t>(high) & 0xffff0000u);
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, member = lane % 4;
    uint32_t* const mine = &inputs[static_cast<size_t>(lane) * 10];
    for (int i = 0; i < 4; ++i) {
      const int row = group + (i % 2) * 8, k = member * 2 + (i / 2) * 8;
      mine[i] = pair(a(row, k), a(row, k + 1));
    }
    for (int i = 0; i < 2; ++i)
      mine[4 + i] = pair(b(member * 2 + i * 8, group), b(member * 2 + i * 8 + 1, group));
    for (int i = 0; i < 4; ++i) {
      const int row = group + i / 2 * 8, column = member * 2 + i % 2;
      mine[6 + i] = std::bit_cast<uint32_t>(c(row, column));
      float sum = c(row, column);
      for (int k = 0; k < 16; ++k) sum += a(row, k) * b(k, column);
      wanted[static_cast<size_t>(lane) * 4 + static_cast<size_t>(i)] = sum;
    }
  }
  std::string body;
  for (int k = 0; k < 10; ++k)
    body +=
        "\tld.global.u32 %r" + std::to_string(10 + k) + ", [%rd0+" + std::to_string(4 * k) + "];\n";
  for (int k = 0; k < 4; ++k)
    body += "\tmov.b32 %f" + std::to_string(k) + ", %r" + std::to_string(16 + k) + ";\n";
  body +=
      "\tmma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3}, {%r10, %r11, "
      "%r12, %r13}, {%r14, %r15}, {%f0, %f1, %f2, %f3};\n";
  for (int k = 0; k < 4; ++k)
    body += "\tst.global.f32 [%rd1+" + std::to_string(4 * k) + "], %f" + std::to_string(k) + ";\n";
  EXPECT_EQ(wanted, (run_threads<float>(body, inputs, 32, 4)));

  // What is far below the largest addend is cut off: of 1 + 3 · 2^-25, nearer to 1 + 2^-23 than to
  // 1, each of the three.
  std::fill(inputs.begin(), inputs.end(), 0u);
  for (size_t lane = 0; lane < 32; ++lane) {
    if (lane % 4 > 1) continue;
    inputs[lane * 10] = lane % 4 == 0 ? pair(1, 0x1p-13f) : pair(0x1p-13f, 0x1p-13f);
    inputs[lane * 10 + 4] = lane % 4 == 0 ? pair(1, 0x1p-12f) : pair(0x1p-12f, 0x1p-12f);
  }
  EXPECT_EQ(1.0f, (run_threads<float>(body, inputs, 32, 4))[0]);
}

TEST(Ptx, MatricesFromSharedMemory) {
  // Four 8×8 matrices of 16 bits, whose element (row, column) of matrix m is 100 m + 10 row +
  // column.
  const auto loaded = [](const std::string& transposed) {
    std::vector<uint32_t> inputs;  // lane l's row: l % 8 of matrix l / 8
    for (uint32_t lane = 0; lane < 32; ++lane) {
      for (uint32_t column = 0; column < 8; column += 2) {
        const uint32_t first = 100 * (lane / 8) + 10 * (lane % 8) + column;
        inputs.push_back(first | (first + 1) << 16);
      }
    }
    return run_threads<uint32_t>(
        "\tld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd0];\n\tshl.b32 %r5, %r0, 4;\n"
        "\tst.shared.v4.u32 [%r5], {%r1, %r2, %r3, %r4};\n\tbar.sync 0;\n"
        "\tldmatrix.sync.aligned.m8n8.x4" +
            transposed +
            ".shared.b16 {%r6, %r7, %r8, %r9}, [%r5];\n"
            "\tst.global.v4.u32 [%rd1], {%r6, %r7, %r8, %r9};",
        inputs, 32, 4, 512);
  };
  const auto plain = loaded(""), transposed = loaded(".trans");
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t m = 0; m < 4; ++m) {
      const uint32_t first = 100 * m + 10 * (lane / 4) + lane % 4 * 2;
      EXPECT_EQ(first | (first + 1) << 16, plain[lane * 4 + m]);
      const uint32_t turned = 100 * m + 10 * (lane % 4 * 2) + lane / 4;
      EXPECT_EQ(turned | (turned + 10) << 16, transposed[lane * 4 + m]);
    }
  }
}

TEST(Ptx, CopiesLandAtTheWait) {
  const auto found = run_threads<uint32_t, uint32_t>(
      "\tshl.b32 %r1, %r0, 4;\n\tsetp.eq.s32 %p1, %r0, 0;\n\tselp.u32 %r2, 16, 0, %p1;\n"
      "\tcp.async.cg.shared.global [%r1], [%rd0], 16, %r2;\n\tcp.async.commit_group;\n"
      "\tadd.s32 %r3, %r1, 64;\n\tcp.async.cg.shared.global [%r3], [%rd0], 16, 16;\n"
      "\tcp.async.commit_group;\n\tcp.async.wait_group 1;\n"
      "\tld.shared.u32 %r4, [%r1+12];\n\tld.shared.u32 %r5, [%r3+12];\n"
      "\tst.global.v2.u32 [%rd1], {%r4, %r5};\n\tcp.async.wait_group 0;\n"
      "\tld.shared.u32 %r5, [%r3+12];\n\tst.global.u32 [%rd1+8], %r5;",
      {1, 2, 3, 4, 5, 6, 7, 8}, 2, 4, 128);
  EXPECT_THAT(found, ElementsAre(4u, 0xffffffffu, 4u, 0u, 0u, 0xffffffffu, 8u, 0u));
}

TEST(Ptx, WarpsAndBlocksByTheSeed) {
  // Each warp adds its number behind what others have left: nothing keeps them in an order.
  const std::string body =
      "\tshr.u32 %r1, %r0, 5;\n\tmul.wide.u32 %rd2, %r0, 4;\n\tsub.s64 %rd3, %rd1, %rd2;\n"
      "\tld.global.u32 %r2, [%rd3];\n\tmad.lo.s32 %r2, %r2, 4, %r1;\n\tst.global.u32 [%rd3], %r2;";
  const std::vector<uint32_t> none(128);
  std::vector<uint32_t> seen;
  for (const uint64_t seed : {0, 1, 2, 3, 4, 5})
    seen.push_back(run_threads<uint32_t>(body, none, 128, 1, 0, "", seed)[0]);
  EXPECT_EQ(0x1bu, seen[0]);  // 0, 1, 2, 3
  EXPECT_GT(std::count_if(seen.begin(), seen.end(), [](uint32_t order) { return order != 0x1b; }),
            2);
}

/// What one warp's accesses come to, with these addresses in %rd2 (global) or %r2 (shared).
Counts counted(const std::string& body) {
  count(true);
  const Counts before = [] {
    const auto at = counts().find("k");
    return at == counts().end() ? Counts() : at->second;
  }();
  run_threads<uint32_t>(body, std::vector<uint32_t>(32 * 64), 32, 64, 8192);
  Counts found = counts().at("k");
  found.launches -= before.launches;
  found.instructions -= before.instructions;
  found.lanes -= before.lanes;
  found.barriers -= before.barriers;
  found.global_accesses -= before.global_accesses;
  found.global_sectors -= before.global_sectors;
  found.global_least -= before.global_least;
  found.shared_accesses -= before.shared_accesses;
  found.shared_rounds -= before.shared_rounds;
  found.shared_least -= before.shared_least;
  return found;
}

TEST(Ptx, CountsWhatAWarpDoes) {
  const Counts nothing = counted("");
  EXPECT_EQ(1u, nothing.launches);
  EXPECT_EQ(6u, nothing.instructions);  // of module()
  EXPECT_EQ(6u * 32, nothing.lanes);
  const Counts half =
      counted("\tsetp.lt.u32 %p1, %r0, 16;\n\t@%p1 add.s32 %r1, %r0, 1;\n\tbar.sync 0;");
  EXPECT_EQ(9u, half.instructions);
  EXPECT_EQ(8u * 32 + 16, half.lanes);
  EXPECT_EQ(1u, half.barriers);
  EXPECT_GE(counts().at("k").opcodes.at("bar.sync"), 1u);
  // Global: neighbours of 4 and 16 bytes; one word in every 256 bytes, and of the same place.
  const auto global = [](const std::string& bytes, const std::string& load) {
    const Counts found = counted(
        "\tmul.wide.u32 %rd2, %r0, 256;\n\tsub.s64 %rd3, %rd0, %rd2;\n"
        "\tmad.wide.u32 %rd2, %r0, " +
        bytes + ", %rd3;\n" + load);
    EXPECT_EQ(1u, found.global_accesses);
    return std::pair(found.global_sectors, found.global_least);
  };
  const std::string one = "\tld.global.u32 %r1, [%rd2];",
                    four = "\tld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd2];";
  const uint64_t crossing = 1;  // the inputs may begin within a sector
  EXPECT_LE(global("4", one).first, 4 + crossing);
  EXPECT_EQ(4u, global("4", one).second);
  EXPECT_LE(global("16", four).first, 16 + crossing);
  EXPECT_EQ(16u, global("16", four).second);
  EXPECT_EQ(32u, global("256", one).first);
  EXPECT_EQ(1u, global("0", one).first);
  // Shared: words side by side, two words apart, 32 apart; one word for all; 16 bytes a lane side
  // by side, and 32 bytes apart.
  const auto shared = [](const std::string& bytes, const std::string& load) {
    const Counts found = counted("\tmul.lo.u32 %r2, %r0, " + bytes + ";\n" + load);
    EXPECT_EQ(1u, found.shared_accesses);
    return std::pair(found.shared_rounds, found.shared_least);
  };
  using Rounds = std::pair<uint64_t, uint64_t>;
  const std::string word = "\tld.shared.u32 %r1, [%r2];",
                    words = "\tld.shared.v4.u32 {%r3, %r4, %r5, %r6}, [%r2];";
  EXPECT_EQ(Rounds(1, 1), shared("4", word));
  EXPECT_EQ(Rounds(2, 1), shared("8", word));
  EXPECT_EQ(Rounds(32, 1), shared("128", word));
  EXPECT_EQ(Rounds(1, 1), shared("0", word));
  EXPECT_EQ(Rounds(4, 4), shared("16", words));
  EXPECT_EQ(Rounds(8, 4), shared("32", words));
}

// ---- What ends the program

using PtxDeathTest = ::testing::Test;
void run_wrong(const std::string& body, uint32_t threads = 64, size_t shared = 1024) {
  run_threads<uint32_t>(body, std::vector<uint32_t>(threads * 4), threads, 4, shared);
}

TEST(PtxDeathTest, SharedMemoryWithoutABarrier) {
  // %r1 is the thread's place, %r2 that of a thread of the other warp, %r3 that of its neighbour.
  const std::string places =
      "\tshl.b32 %r1, %r0, 2;\n\txor.b32 %r2, %r1, 132;\n\txor.b32 %r3, %r1, 4;\n";
  const std::string write = "\tst.shared.u32 [%r1], %r0;\n", barrier = "\tbar.sync 0;\n",
                    read_far = "\tld.shared.u32 %r4, [%r2];\n",
                    read_near = "\tld.shared.u32 %r4, [%r3];\n", sync = "\tbar.warp.sync -1;\n";
  const auto wrong = [&](const std::string& body) { run_wrong(places + body); };
  wrong(write + barrier + read_far);
  // The first warp runs up to the barrier, or to its end, before the second begins.
  EXPECT_DEATH(wrong(write + read_far),
               "thread 32 writes shared memory that thread 1 read, without a barrier");
  EXPECT_DEATH(wrong(write + barrier + read_far + write),
               "thread 32 reads shared memory that thread 1 wrote, without a barrier");
  wrong(write + sync + read_near);
  EXPECT_DEATH(wrong(write + read_near),
               "thread 0 reads shared memory that thread 1 wrote, without a barrier");
  wrong(read_near + sync + write);
  EXPECT_DEATH(wrong(read_near + write),
               "thread 0 writes shared memory that thread 1 read, without a barrier");
  EXPECT_DEATH(run_wrong("\tmov.u32 %r1, 0;\n\tst.shared.u32 [%r1], %r0;"),
               "thread 1 writes shared memory that thread 0 wrote");
}

TEST(PtxDeathTest, Addresses) {
  EXPECT_DEATH(run_wrong("\tmov.u32 %r1, 1022;\n\tld.shared.u32 %r2, [%r1];"),
               "not aligned to 4 bytes");
  EXPECT_DEATH(run_wrong("\tmov.u32 %r1, 1024;\n\tld.shared.u32 %r2, [%r1];"),
               "4 bytes at 1024 of 1024 bytes of shared");
  EXPECT_DEATH(run_wrong("\tmov.u32 %r1, 1016;\n\tld.shared.v4.u32 {%r2, %r3, %r4, %r5}, [%r1];"),
               "not aligned to 16");
  EXPECT_DEATH(run_wrong("\tld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd0+4];"),
               "not aligned to 16");
  EXPECT_DEATH(run_wrong("\tmov.u64 %rd2, 0;\n\tld.global.u32 %r2, [%rd2];"), "global address 0");
  EXPECT_DEATH(run_wrong("\tld.param.u64 %rd2, [k_param_1+8];"), "of 16 bytes of parameters");
}

TEST(PtxDeathTest, LanesThatNeverCome) {
  const std::string half =
      "\tand.b32 %r1, %r0, 1;\n\tsetp.eq.s32 %p1, %r1, 0;\n\t@%p1 bra $L_there;\n";
  EXPECT_DEATH(run_wrong(half + "\tbar.sync 0;\n$L_there:"),
               "wait at a barrier, others have ended");
  EXPECT_DEATH(run_wrong(half + "\tret;\n$L_there:\n\tbar.warp.sync -1;"),
               "names lanes that have ended");
  EXPECT_DEATH(
      run_wrong(half + "\tbar.warp.sync -1;\n\tret;\n$L_there:\n\tbar.warp.sync -1;\n\tret;"),
      "that never come");
  EXPECT_DEATH(run_wrong("\tbar.warp.sync -1;", 40), "names lanes that the block does not have");
  EXPECT_DEATH(run_wrong("\tbar.warp.sync 1;"), "comes with mask");
}

TEST(PtxDeathTest, WhatIsNotUnderstood) {
  EXPECT_DEATH(run_wrong("\tred.global.add.u32 [%rd0], 1;"),
               "k, line 21: not understood: .*red.global");
  EXPECT_DEATH(run_wrong("\tadd.sat.s32 %r1, %r0, 1;"), "not understood");
  EXPECT_DEATH(run_wrong("\tex2.approx.f32 %f1, %f0;"), "not understood");
  EXPECT_DEATH(run_wrong("\tmov.u32 %r1, %clock;"), "not understood: %clock");
  EXPECT_DEATH(run_wrong("\tadd.s32 %r1, %q0, 1;"), "not understood: %q0");
  EXPECT_DEATH(run_wrong("", 1025), "a block of 1025");
  EXPECT_DEATH(run_wrong("", 64, 200 * 1024), "bytes of shared memory");
}

}  // namespace
}  // namespace xsr::ptx
