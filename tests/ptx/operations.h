#pragma once
// What PTX's instructions do to registers and memory (PTX ISA, chapter 9).
#include <string>
#include <string_view>
#include <vector>

#include "tests/ptx/program.h"

namespace xsr::ptx {

/// "mad", "lo", "cc", "u32" of mad.lo.cc.u32.
using Parts = std::vector<std::string_view>;
Parts split_opcode(std::string_view opcode);
bool has(const Parts& parts, std::string_view part);
/// Its last part; ends the program where that is no type.
Type type_of(const Parts& parts);
Comparison comparison_of(const Parts& parts);
size_t size_of(Type type);

/// Of instructions whose first operand is a register that they write, and whose others are read.
/// Null where it is not known.
Execute arithmetic(const Parts& parts);
/// Between registers and memory, by `vector` elements of this type.
Execute load(Type type);
Execute store(Type type);
Execute comparison(
    Type type, std::string_view combined);  // combined: with another predicate by "and", …, or ""
/// mov with a vector on one side: `count` registers of this size, packed into one or taken from it.
Execute pack(size_t bytes), unpack(size_t bytes);

void shuffle(Warp& warp, const Instruction& instruction, uint32_t lanes);
void sync_warp(Warp& warp, const Instruction& instruction, uint32_t lanes);
void mma_m16n8k16_bf16(Warp& warp, const Instruction& instruction, uint32_t lanes);
void load_matrix_x4(Warp& warp, const Instruction& instruction, uint32_t lanes);
void load_matrix_x4_transposed(Warp& warp, const Instruction& instruction, uint32_t lanes);
void copy_16_async(Warp& warp, const Instruction& instruction, uint32_t lanes);
void copy_commit(Warp& warp, const Instruction& instruction, uint32_t lanes);
void copy_wait(Warp& warp, const Instruction& instruction, uint32_t lanes);
void to_shared(Warp& warp, const Instruction& instruction, uint32_t lanes);
void from_shared(Warp& warp, const Instruction& instruction, uint32_t lanes);

}  // namespace xsr::ptx
