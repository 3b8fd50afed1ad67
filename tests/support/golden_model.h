#pragma once
// Golden losses, gradients and optimiser steps of a small model, made with PyTorch in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "converter/checkpoint.h"
#include "converter/convert.h"
#include "converter/family.h"
#include "tests/support/plain_model.h"
#include "training/model_file.h"

namespace xsr::test {

using training::InitialModel;
using training::PairBatch;
using training::Parameter;
using training::ParameterTable;
using training::read_initial_model;

/// A golden file: its model, its batch, and what both give.
class Golden {
 public:
  explicit Golden(const std::string& path) : file_(Checkpoint::open(path)) {
    const nlohmann::json metadata = nlohmann::json::parse(file_->metadata().at("config"));
    ConvertOptions options;
    options.prefix = "parameter.";
    options.num_heads = metadata.at("num_heads").get<int32_t>();
    model_ = read_initial_model(path, options, 1);
    for (const TensorRule& rule : encoder_rules(family_xsr(), config().num_layers))
      rules_.push_back(rule);
    for (const TensorRule& rule : family_xsr().head) rules_.push_back(rule);
    read_batch();
  }

  const ModelConfig& config() const { return model_.config; }
  const InitialModel& model() const { return model_; }
  const PairBatch& batch() const { return batch_; }
  double loss(const std::string& name) const {
    return nlohmann::json::parse(file_->metadata().at("losses")).at(name).get<double>();
  }
  std::vector<double> trajectory() const {
    const auto found = file_->metadata().find("adam_amsgrad_losses");
    return found == file_->metadata().end()
               ? std::vector<double>()
               : nlohmann::json::parse(found->second).get<std::vector<double>>();
  }
  bool has_gradient(const std::string& loss) const {
    return file_->find("gradient." + loss + "." + rules_[0].sources[0]) != nullptr;
  }
  bool is_double() const {
    return file_->find("parameter." + rules_[0].sources[0])->dtype == ScalarType::kF64;
  }
  /// "parameter.", "gradient.total.", "after.": of one parameter, stacked as the .xsr file has it.
  std::vector<double> tensor(const std::string& prefix, const Parameter& p) const {
    for (const TensorRule& rule : rules_) {
      if (rule.target != p.name) continue;
      std::vector<double> all;
      for (const std::string& source : rule.sources) {
        const CheckpointTensor* found = file_->find(prefix + source);
        if (found == nullptr) throw Error(XSR_STATUS_BAD_FILE, "no tensor " + prefix + source);
        const std::vector<double> part = found->to_f64();
        all.insert(all.end(), part.begin(), part.end());
      }
      EXPECT_EQ(static_cast<size_t>(p.size), all.size()) << p.name;
      return all;
    }
    throw Error(XSR_STATUS_BAD_FILE, "no rule for " + p.name);
  }
  /// All of them, as a FlatBuffer has them.
  std::vector<double> flat(const std::string& prefix) const {
    const ParameterTable table(config());
    std::vector<double> all(table.size());
    for (const Parameter& p : table.parameters()) {
      const std::vector<double> part = tensor(prefix, p);
      std::copy(part.begin(), part.end(), all.begin() + p.offset);
    }
    return all;
  }
  template <typename T>
  void fill(PlainModel<T>& plain) const {
    const std::vector<double> from = flat("parameter.");
    for (size_t i = 0; i < from.size(); ++i) plain.values[i] = static_cast<T>(from[i]);
  }

 private:
  void read_batch() {
    const auto integers = [&](const char* name) { return file_->find(name)->to_i64(); };
    const std::vector<int64_t> masked_side = integers("masked_side"),
                               masked = integers("masked_id");
    const int32_t B = static_cast<int32_t>(masked.size());
    batch_.num_pairs = B;
    batch_.cu_seqlens = {0};
    for (const char* side : {"1", "2"}) {
      const CheckpointTensor& ids = *file_->find(std::string("ids") + side);
      const std::vector<int64_t> padded = ids.to_i64();
      const std::vector<int64_t> lens = file_->find(std::string("len") + side)->to_i64();
      for (int32_t b = 0; b < B; ++b) {
        for (int64_t t = 0; t < lens[b]; ++t)
          batch_.token_ids.push_back(static_cast<int32_t>(padded[b * ids.shape[1] + t]));
        batch_.cu_seqlens.push_back(static_cast<int32_t>(batch_.token_ids.size()));
      }
    }
    for (int32_t b = 0; b < B; ++b) {
      const uint8_t side = static_cast<uint8_t>(masked_side[b] - 1);
      const int32_t sentence = side * B + b;
      const auto first = batch_.token_ids.begin() + batch_.cu_seqlens[sentence];
      const auto last = batch_.token_ids.begin() + batch_.cu_seqlens[sentence + 1];
      const auto mask = std::find(first, last, 2);
      EXPECT_TRUE(mask != last) << "pair " << b << " has no <MASK>";
      batch_.masked_side.push_back(side);
      batch_.masked_id.push_back(static_cast<int32_t>(masked[b]));
      batch_.masked_row.push_back(static_cast<int32_t>(mask - batch_.token_ids.begin()));
      batch_.pair_numbers.push_back(b);
    }
  }

  std::unique_ptr<Checkpoint> file_;
  InitialModel model_;
  std::vector<TensorRule> rules_;
  PairBatch batch_;
};

}  // namespace xsr::test
