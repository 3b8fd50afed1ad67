#include "training/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <tuple>

#define TOML_ENABLE_FORMATTERS 0
#define TOML_ASSERT(expression) static_cast<void>(0)  // it asserts of the file what it then checks
#include <toml++/toml.h>

#include "kernels/dispatch.h"
#include "runtime/device/cuda_library.h"
#include "runtime/error.h"
#include "runtime/text/utf8.h"

namespace xsr::training {
namespace {

constexpr double kMany = 1e15;  // an upper bound that only says "no bound that matters"

template <typename T>
Slot number(T& target, double low, double high) {
  return {&target, low, high};
}
template <typename T>
Slot any(T& target) {
  return {&target, 0, 0};
}
template <typename E>
Slot choice(E& target, std::vector<std::string> names) {
  return {Slot::Choice{std::move(names), [&target] { return static_cast<size_t>(target); },
                       [&target](size_t i) { target = static_cast<E>(i); }},
          0, 0};
}

#define SLOT(expression) [](TrainConfig& c) -> Slot { return expression; }

const std::vector<ConfigKey> kKeys = {
    {"", "preset", "Where the other keys start from: stable, release (the authors' code) or paper",
     SLOT(choice(c.preset, {"paper", "release", "stable"}))},
    {"", "run", "Folder that everything the run writes goes to", SLOT(any(c.run)), true},
    {"", "seed", "Of initial weights, order, masks, dropout and held-out pairs",
     SLOT(number(c.seed, 0, 9e15))},
    {"", "threads", "0: the processors this process may use; never changes a bit of the result",
     SLOT(number(c.threads, 0, 1024)), true},
    {"", "isa",
     "Instruction set: auto, ref, avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16, amx; a "
     "resumed run keeps "
     "the "
     "one it had",
     SLOT(any(c.isa)), true},
    {"", "device",
     "cpu, cuda, or cuda:0,1 for several that share every batch; a run may go on on another",
     SLOT(any(c.device)), true},
    {"", "precision",
     "What the matrix products read: f32; bf16 (summed in f32); or int8 (8 bits, exact sums) in "
     "the encoder and bf16 in the losses, the fastest, of the processor alone",
     SLOT(choice(c.step.precision, {"f32", "bf16", "int8"}))},

    {"data", "train",
     "Files of pairs, one pair a line, columns split by TAB; plain, .gz or .zst; [NAME=]FILE, and "
     "files of one NAME are one language pair",
     SLOT(any(c.train)), true},
    {"data", "dev", "The same for evaluation; empty: dev_pairs are held out of train",
     SLOT(any(c.dev)), true},
    {"data", "columns", "Of side 1 and side 2, from 1", SLOT(number(c.columns, 1, 1000))},
    {"data", "num_columns", "Of a line; 0: as many as columns asks for",
     SLOT(number(c.num_columns, 0, 1000))},
    {"data", "dev_pairs", "Held out of every language pair, at most half of it",
     SLOT(number(c.dev_pairs, 0, 1e6))},
    {"data", "weights", "Shares of the language pairs in their order; empty: by temperature",
     SLOT(number(c.sampler.weights, 0, kMany))},
    {"data", "temperature", "A language pair's share is ∝ pairs^(1/temperature)",
     SLOT(number(c.sampler.temperature, 0.1, 1e6))},
    {"data", "strict", "A faulty line is an error; otherwise it is dropped and counted",
     SLOT(any(c.corpus.strict))},
    {"data", "max_line_bytes", "A longer line is a fault",
     SLOT(number(c.corpus.max_line_bytes, 16, 1e9))},
    {"data", "min_tokens", "A pair with a shorter side is dropped",
     SLOT(number(c.corpus.min_tokens, 1, 1e6))},
    {"data", "max_tokens",
     "A pair with a longer side is dropped; 0: longer sides are cut to max_seq_len",
     SLOT(number(c.corpus.max_tokens, 0, 1e6))},
    {"data", "max_ratio",
     "A pair whose sides' lengths in tokens, as cut, differ more is dropped; 0: any",
     SLOT(number(c.corpus.max_ratio, 0, 1e6))},
    {"data", "batch_pairs", "Pairs of a batch; with batch_tokens its most",
     SLOT(number(c.sampler.batch_pairs, 1, 1e6))},
    {"data", "batch_tokens", "Most tokens of a batch, both sides; 0: by pairs alone",
     SLOT(number(c.sampler.batch_tokens, 0, 1e9))},
    {"data", "pool_batches", "> 1: pairs are sorted by length within so many batches' worth",
     SLOT(number(c.sampler.pool_batches, 1, 1e6))},
    {"data", "drop_last", "No smaller batch at the end of an epoch",
     SLOT(any(c.sampler.drop_last))},
    {"data", "cache", "Folder of the tokenised corpora, which runs can share; empty: the run's",
     SLOT(any(c.cache)), true},

    {"tokenizer", "model", "A SentencePiece model; empty: that of init, or one is trained",
     SLOT(any(c.tokenizer)), true},
    {"tokenizer", "vocab_size", "Of a trained one, in pieces",
     SLOT(number(c.tokenizer_training.vocab_size, 8, 1e6))},
    {"tokenizer", "character_coverage", "Of the sample's characters; others become <unk>",
     SLOT(number(c.tokenizer_training.character_coverage, 0.98, 1))},
    {"tokenizer", "max_sentences", "In the sample it is trained on; bounds the memory",
     SLOT(number(c.tokenizer_training.max_sentences, 2, kMany))},
    {"tokenizer", "temperature", "A language pair's share of the sample is ∝ pairs^(1/temperature)",
     SLOT(number(c.tokenizer_training.temperature, 0.1, 1e6))},

    {"model", "init",
     "A .xsr file, a checkpoint that xsr-convert reads or one of xsr-train to start from, of the "
     "same sizes; the first two may have fewer layers, those added then change nothing at first; "
     "empty: random",
     SLOT(any(c.init)), true},
    {"model", "num_layers", "0: the normalised embeddings are pooled as they are",
     SLOT(number(c.model.num_layers, 0, 128))},
    {"model", "hidden_size", "", SLOT(number(c.model.hidden_size, 1, 65536))},
    {"model", "num_heads", "Divides hidden_size", SLOT(number(c.model.num_heads, 1, 1024))},
    {"model", "intermediate_size", "", SLOT(number(c.model.intermediate_size, 1, 1 << 20))},
    {"model", "max_seq_len", "Tokens; longer sentences are cut",
     SLOT(number(c.model.max_seq_len, 1, UINT16_MAX))},
    {"model", "activation", "Of the feed-forward layers",
     SLOT(choice(c.model.activation, {"none", "swish", "gelu", "gelu-tanh", "relu", "tanh"}))},
    {"model", "pooling", "", SLOT(choice(c.model.pooling, {"mean", "max", "cls"}))},
    {"model", "lowercase", "Texts are lower-cased first", SLOT(any(c.model.lowercase))},
    {"model", "license",
     "The terms the weights come under, as text or a file of it; kept in model.xsr",
     SLOT(any(c.license)), true},
    {"model", "layer_norm_eps", "Inside the square root",
     SLOT(number(c.model.layer_norm_eps, 0, 0.1))},
    {"model", "dropout",
     "Of embeddings, attention probabilities, attention and feed-forward output",
     SLOT(number(c.step.dropout, 0, 0.95))},

    {"objective", "xtr_weight", "Words of the other side, from the sentence's vector; 0: left out",
     SLOT(number(c.step.objectives.xtr_weight, 0, 1e6))},
    {"objective", "ugt_weight", "XTR that also asks for the masked word",
     SLOT(number(c.step.objectives.ugt_weight, 0, 1e6))},
    {"objective", "smlm_weight", "The masked word alone",
     SLOT(number(c.step.objectives.smlm_weight, 0, 1e6))},
    {"objective", "align_weight", "Contrast within the batch, dot products",
     SLOT(number(c.step.objectives.align_weight, 0, 1e6))},
    {"objective", "sim_weight", "Likeness within side 1 as within side 2",
     SLOT(number(c.step.objectives.sim_weight, 0, 1e6))},
    {"objective", "info_nce_weight", "Contrast within the batch, cosines with a temperature",
     SLOT(number(c.step.objectives.info_nce_weight, 0, 1e6))},
    {"objective", "mask", "One token of each pair becomes <MASK>", SLOT(any(c.mask))},
    {"objective", "count_weighted",
     "Targets of count/len, which sum to 1; otherwise 1/len on distinct ids",
     SLOT(any(c.step.objectives.targets.count_weighted))},
    {"objective", "clean_ids", "Targets of the id under <MASK>; otherwise <MASK> is one",
     SLOT(any(c.step.objectives.targets.clean_ids))},
    {"objective", "add_masses", "UGT: a masked word that the other side has too gets both masses",
     SLOT(any(c.step.objectives.targets.add_masses))},
    {"objective", "align_cosine", "ALIGN by cosines", SLOT(any(c.step.objectives.align.cosine))},
    {"objective", "align_temperature", "Divides the products",
     SLOT(number(c.step.objectives.align.temperature, 1e-6, 1e6))},
    {"objective", "align_mean", "Mean of both directions; otherwise their sum",
     SLOT(any(c.step.objectives.align.mean_of_directions))},
    {"objective", "align_margin", "Taken off the pair's own product",
     SLOT(number(c.step.objectives.align.margin, 0, 1e6))},
    {"objective", "sim_argument", "Of the cosine; π/2 as released, π as EMS",
     SLOT(number(c.step.objectives.sim.argument, 1e-6, 3.2))},
    {"objective", "sim_divide", "By (B − 1)², as EMS",
     SLOT(any(c.step.objectives.sim.divide_by_negatives))},
    {"objective", "sim_min_cosine", "The cosine is held above it; 0: no bound",
     SLOT(number(c.step.objectives.sim.min_cosine, 0, 0.5))},
    {"objective", "info_nce_cosine", "Otherwise dot products",
     SLOT(any(c.step.objectives.info_nce.cosine))},
    {"objective", "info_nce_temperature", "Divides the products",
     SLOT(number(c.step.objectives.info_nce.temperature, 1e-6, 1e6))},
    {"objective", "info_nce_mean", "Mean of both directions; otherwise their sum",
     SLOT(any(c.step.objectives.info_nce.mean_of_directions))},
    {"objective", "info_nce_margin", "Taken off the pair's own product",
     SLOT(number(c.step.objectives.info_nce.margin, 0, 1e6))},

    {"optimizer", "amsgrad", "", SLOT(any(c.step.optimizer.amsgrad))},
    {"optimizer", "decoupled_decay", "AdamW; otherwise Adam with L2 in the gradient",
     SLOT(any(c.step.optimizer.decoupled_decay))},
    {"optimizer", "beta1", "", SLOT(number(c.step.optimizer.beta1, 0, 0.999999999))},
    {"optimizer", "beta2", "", SLOT(number(c.step.optimizer.beta2, 0, 0.999999999))},
    {"optimizer", "eps", "", SLOT(number(c.step.optimizer.eps, 1e-30, 1))},
    {"optimizer", "weight_decay", "", SLOT(number(c.step.optimizer.weight_decay, 0, 1e6))},
    {"optimizer", "clip_norm", "Largest global norm of the gradient; 0: no clipping",
     SLOT(number(c.step.optimizer.clip_norm, 0, 1e9))},

    {"schedule", "learning_rate", "Its peak", SLOT(number(c.schedule.learning_rate, 1e-12, 1e30))},
    {"schedule", "warmup", "untuned_linear: over 2/(1 − beta2) steps",
     SLOT(choice(c.schedule.warmup, {"none", "linear", "untuned_linear"}))},
    {"schedule", "warmup_steps", "Of linear", SLOT(number(c.schedule.warmup_steps, 0, kMany))},
    {"schedule", "decay",
     "cosine: down to final_fraction, which the update behind the run's last would have",
     SLOT(choice(c.schedule.decay, {"constant", "step", "cosine"}))},
    {"schedule", "step_factor", "What each step multiplies the rate by",
     SLOT(number(c.schedule.step_factor, 1e-12, 1))},
    {"schedule", "step_epochs", "Epochs, from 0, that begin with a step",
     SLOT(number(c.schedule.step_epochs, 0, kMany))},
    {"schedule", "step_updates", "Updates behind which there is a step",
     SLOT(number(c.schedule.step_updates, 0, kMany))},
    {"schedule", "final_fraction", "Of cosine", SLOT(number(c.schedule.final_fraction, 0, 1))},

    {"train", "epochs", "", SLOT(number(c.epochs, 1, 1e9))},
    {"train", "steps", "> 0: so many updates, whatever epochs says",
     SLOT(number(c.steps, 0, kMany))},
    {"train", "log_every", "Steps between lines of metrics", SLOT(number(c.log_every, 1, kMany)),
     true},
    {"train", "eval_every", "Steps between dev evaluations; 0: at the end of every epoch",
     SLOT(number(c.eval_every, 0, kMany))},
    {"train", "dev_dropout", "Dev loss with dropout, as the release computes it",
     SLOT(any(c.dev_dropout))},
    {"train", "select", "What the best weights are best in: retrieval (mean P@1) or loss, on dev",
     SLOT(choice(c.selection, {"retrieval", "loss"}))},
    {"train", "patience", "Evaluations without a better one until training stops; 0: never",
     SLOT(number(c.patience, 0, kMany))},
    {"train", "average", "model.xsr is the mean of the last so many evaluated weights; 0: the best",
     SLOT(number(c.average, 0, 1000))},
    {"train", "checkpoint_every", "Steps between checkpoints; 0: by time alone",
     SLOT(number(c.checkpoint_every, 0, kMany)), true},
    {"train", "checkpoint_minutes", "Minutes between checkpoints; 0: by steps alone",
     SLOT(number(c.checkpoint_minutes, 0, 1e6)), true},
    {"train", "dtype", "Of the tables and matrices in model.xsr",
     SLOT(choice(c.dtype, {"f32", "f16", "bf16"})), true},
};
#undef SLOT

/// A value as it was written: typed (TOML) or text that the key's type gives a meaning (a flag).
struct Scalar {
  enum Type { kText, kBool, kInteger, kReal, kUntyped } type = kUntyped;
  std::string text;
  bool boolean = false;
  int64_t integer = 0;
  double real = 0;
};

struct Written {
  std::string where;  // "FILE:LINE: key 'x'" or "--x"
  bool list = false;
  std::vector<Scalar> items;
};

std::string range_text(const Slot& slot) {
  if (slot.low == slot.high) return "";
  if (slot.high >= kMany) return fmt::format(" of at least {} and at most {}", slot.low, slot.high);
  return fmt::format(" from {} to {}", slot.low, slot.high);
}

/// Shortest text that reads back to the same double, and as a float in TOML.
std::string toml_number(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}
std::string toml_number(int64_t value) { return std::to_string(value); }

std::string shown(const Scalar& s) {
  switch (s.type) {
    case Scalar::kText:
    case Scalar::kUntyped:
      return "\"" + s.text + "\"";
    case Scalar::kBool:
      return s.boolean ? "true" : "false";
    case Scalar::kInteger:
      return std::to_string(s.integer);
    case Scalar::kReal:  // 2.0, which is no whole number, is not to be shown as 2
      return std::isfinite(s.real) ? toml_number(s.real) : fmt::format("{}", s.real);
  }
  return "";
}

[[noreturn]] void expected(const Written& w, const Scalar& found, const std::string& what) {
  throw_invalid(fmt::format("{} is {}, expected {}", w.where, shown(found), what));
}

template <typename T>
bool parse_whole(const std::string& text, T* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size();
}

double to_real(const Written& w, const Scalar& s, const Slot& slot) {
  double value = 0;
  if (s.type == Scalar::kReal) {
    value = s.real;
  } else if (s.type == Scalar::kInteger) {
    value = static_cast<double>(s.integer);
  } else if (s.type != Scalar::kUntyped || !parse_whole(s.text, &value)) {
    expected(w, s, "a number" + range_text(slot));
  }
  if (!std::isfinite(value) || (slot.low != slot.high && (value < slot.low || value > slot.high))) {
    expected(w, s, "a number" + range_text(slot));
  }
  return value;
}

template <typename T>
T to_integer(const Written& w, const Scalar& s, const Slot& slot) {
  int64_t value = s.integer;
  const bool whole =
      s.type == Scalar::kInteger || (s.type == Scalar::kUntyped && parse_whole(s.text, &value));
  if (!whole || static_cast<double>(value) < slot.low || static_cast<double>(value) > slot.high) {
    expected(w, s, "a whole number" + range_text(slot));
  }
  return static_cast<T>(value);
}

std::string to_text(const Written& w, const Scalar& s) {
  if (s.type != Scalar::kText && s.type != Scalar::kUntyped) expected(w, s, "text in quotes");
  // config.toml, the checkpoints and the manifest could not hold it.
  if (!is_valid_utf8(s.text)) expected(w, s, "UTF-8; give the file or folder another name");
  if (s.text.find('\0') != std::string::npos) throw_invalid(w.where + " holds a NUL character");
  return s.text;
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i) {
    text += (i == 0 ? "" : i + 1 == words.size() ? " or " : ", ") + words[i];
  }
  return text;
}

void assign(const Slot& slot, const Written& w) {
  std::visit(
      [&](const auto& target) {
        using T = std::decay_t<decltype(target)>;
        if constexpr (std::is_same_v<T, std::vector<std::string>*>) {
          target->clear();
          for (const Scalar& s : w.items) target->push_back(to_text(w, s));
        } else if constexpr (std::is_same_v<T, std::vector<double>*>) {
          target->clear();
          for (const Scalar& s : w.items) target->push_back(to_real(w, s, slot));
        } else if constexpr (std::is_same_v<T, std::vector<int64_t>*>) {
          target->clear();
          for (const Scalar& s : w.items) target->push_back(to_integer<int64_t>(w, s, slot));
        } else {
          if (w.list || w.items.size() != 1) {
            throw_invalid(fmt::format("{} has {} values, expected one", w.where, w.items.size()));
          }
          const Scalar& s = w.items[0];
          if constexpr (std::is_same_v<T, bool*>) {
            const bool yes = s.type == Scalar::kUntyped && s.text == "true";
            const bool no = s.type == Scalar::kUntyped && s.text == "false";
            if (s.type != Scalar::kBool && !yes && !no) expected(w, s, "true or false");
            *target = s.type == Scalar::kBool ? s.boolean : yes;
          } else if constexpr (std::is_same_v<T, double*>) {
            *target = to_real(w, s, slot);
          } else if constexpr (std::is_same_v<T, std::string*>) {
            *target = to_text(w, s);
          } else if constexpr (std::is_same_v<T, Slot::Choice>) {
            const std::string text = to_text(w, s);
            const auto at = std::find(target.names.begin(), target.names.end(), text);
            if (at == target.names.end()) expected(w, s, joined(target.names));
            target.set(static_cast<size_t>(at - target.names.begin()));
          } else {
            *target = to_integer<std::remove_pointer_t<T>>(w, s, slot);
          }
        }
      },
      slot.target);
}

/// A TOML basic string.
std::string in_quotes(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out + "\"";
}

template <typename T, typename F>
std::string toml_list(const std::vector<T>& items, F text) {
  std::string out = "[";
  for (size_t i = 0; i < items.size(); ++i) out += (i ? ", " : "") + text(items[i]);
  return out + "]";
}

Scalar scalar_of(const toml::node& node, const std::string& where) {
  Scalar s;
  if (const auto* text = node.as_string()) {
    s.type = Scalar::kText;
    s.text = text->get();
  } else if (const auto* boolean = node.as_boolean()) {
    s.type = Scalar::kBool;
    s.boolean = boolean->get();
  } else if (const auto* integer = node.as_integer()) {
    s.type = Scalar::kInteger;
    s.integer = integer->get();
  } else if (const auto* real = node.as_floating_point()) {
    s.type = Scalar::kReal;
    s.real = real->get();
  } else {
    throw_invalid(where + " is neither text, a number, true, false nor a list of these");
  }
  return s;
}

struct FileKey {
  const ConfigKey* key;
  Written written;
};

void unknown_key(const std::string& at, const std::string& name) {
  const std::string near = nearest_key(name);
  throw_invalid(fmt::format("{}unknown key '{}'{}", at, name,
                            near.empty() ? "; `xsr-train --print-config` lists all keys"
                                         : "; did you mean '" + near + "'?"));
}

void collect(const std::string& path, const toml::table& table, const std::string& section,
             std::vector<FileKey>& out) {
  for (const auto& [name, node] : table) {
    const std::string full =
        section.empty() ? std::string(name.str()) : section + "." + std::string(name.str());
    const std::string at = fmt::format("{}:{}: ", path, name.source().begin.line);
    if (const toml::table* inner = node.as_table()) {
      const bool known = std::any_of(kKeys.begin(), kKeys.end(),
                                     [&](const ConfigKey& k) { return full == k.section; });
      if (!known && find_key(full) == nullptr && inner->empty()) unknown_key(at, full);
      if (find_key(full) != nullptr) throw_invalid(at + "'" + full + "' is a key, not a section");
      collect(path, *inner, full, out);
      continue;
    }
    const ConfigKey* key = find_key(full);
    if (key == nullptr) unknown_key(at, full);
    Written w;
    w.where = at + full;
    if (const toml::array* array = node.as_array()) {
      w.list = true;
      for (const toml::node& item : *array) w.items.push_back(scalar_of(item, w.where));
    } else {
      w.items.push_back(scalar_of(node, w.where));
    }
    out.push_back({key, std::move(w)});
  }
}

std::vector<FileKey> read_toml(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw Error(XSR_STATUS_IO, path + ": cannot open the config file");
  std::string text;
  try {
    text.assign(std::istreambuf_iterator<char>(in), {});
  } catch (const std::ios_base::failure&) {
    throw Error(XSR_STATUS_IO, path + ": cannot read the config file; is it a folder?");
  }
  std::vector<FileKey> keys;
  try {
    const toml::table table = toml::parse(text, path);
    collect(path, table, "", keys);
  } catch (const toml::parse_error& error) {
    throw_invalid(fmt::format("{}:{}: {}", path, error.source().begin.line, error.description()));
  }
  return keys;
}

/// Levenshtein's distance.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, change});
    }
  }
  return row[b.size()];
}

}  // namespace

TrainConfig::TrainConfig(Preset p) : preset(p) {
  model.family = Family::kXsr;
  model.num_layers = 2;
  model.hidden_size = 512;
  model.num_heads = 8;
  model.intermediate_size = 1024;
  model.max_seq_len = 200;
  model.position_offset = 1;
  model.activation = Activation::kSwish;
  model.pooling = Pooling::kMean;
  model.lowercase = true;
  model.layer_norm_eps = 1e-12;
  tokenizer_training.vocab_size = 50000;
  step.objectives = objective_preset(p);
  step.optimizer = optimizer_preset(p);
  dev_dropout = p == Preset::kRelease;                     // as released: docs/methods.md
  if (p != Preset::kStable) selection = Selection::kLoss;  // likewise
}

const std::vector<ConfigKey>& config_keys() { return kKeys; }

const ConfigKey* find_key(std::string_view full_name) {
  for (const ConfigKey& key : kKeys) {
    if (key.full_name() == full_name) return &key;
  }
  return nullptr;
}

bool is_list(const ConfigKey& key) {
  TrainConfig any;
  const Slot slot = key.slot(any);
  return std::holds_alternative<std::vector<std::string>*>(slot.target) ||
         std::holds_alternative<std::vector<double>*>(slot.target) ||
         std::holds_alternative<std::vector<int64_t>*>(slot.target);
}

std::string nearest_key(std::string_view written) {
  const auto last = [](std::string_view name) { return name.substr(name.rfind('.') + 1); };
  std::string best;
  size_t best_distance = std::numeric_limits<size_t>::max();
  for (const ConfigKey& key : kKeys) {
    const std::string full = key.full_name();
    // A key in the wrong section is as near as the same key spelled right.
    const size_t distance = std::min(
        2 * edit_distance(written, full),
        2 * edit_distance(last(written), key.name) + (full.size() == last(full).size() ? 0u : 1u));
    if (distance < best_distance) {
      best_distance = distance;
      best = full;
    }
  }
  const size_t near = 2 * std::max<size_t>(2, last(written).size() / 3) + 1;
  return best_distance <= near ? best : "";
}

TrainConfig load_config(const std::string& path, const std::vector<FlagValue>& flags) {
  std::vector<FileKey> keys;
  if (!path.empty()) keys = read_toml(path);
  for (const FlagValue& flag : flags) {
    const ConfigKey* key = find_key(flag.key);
    if (key == nullptr) unknown_key("", flag.key);
    Written w;
    w.where = "--" + flag.key;
    for (const std::string& value : flag.values) {
      if (value.empty() && is_list(*key)) continue;
      Scalar s;
      s.text = value;
      w.items.push_back(std::move(s));
    }
    keys.push_back({key, std::move(w)});
  }
  // The preset decides what the other keys start from, wherever it stands.
  TrainConfig first;
  for (const FileKey& k : keys) {
    if (std::string_view(k.key->name) == "preset") assign(k.key->slot(first), k.written);
  }
  TrainConfig config(first.preset);
  for (const FileKey& k : keys) assign(k.key->slot(config), k.written);

  config.sampler.seed = config.step.seed = config.tokenizer_training.seed = config.seed;
  config.tokenizer_training.lowercase = config.model.lowercase;
  config.tokenizer_training.max_line_bytes = config.corpus.max_line_bytes;
  config.schedule.beta2 = config.step.optimizer.beta2;
  config.model.embedding_size = config.model.hidden_size;
  config.model.num_positions = config.model.max_seq_len + config.model.position_offset;
  return config;
}

void validate(const TrainConfig& config) {
  if (!cuda_devices_of(config.device).empty() && config.step.precision == Precision::kInt8) {
    throw_invalid(
        fmt::format("precision is int8, which device {} does not train in; f32 and bf16 "
                    "can be had there",
                    config.device));
  }
  if (config.run.empty()) throw_invalid("run is not set: the folder that the run is written to");
  if (config.train.empty()) throw_invalid("data.train is not set: the files of sentence pairs");
  if (config.columns.size() != 2 || config.columns[0] == config.columns[1]) {
    throw_invalid("data.columns must name two different columns, e.g. [1, 2]");
  }
  if (config.num_columns > 0 &&
      config.num_columns < *std::max_element(config.columns.begin(), config.columns.end())) {
    throw_invalid(fmt::format("data.num_columns is {}, fewer than data.columns asks for",
                              config.num_columns));
  }
  const size_t pairs =
      parse_language_pairs(config.train, config.columns, config.num_columns).size();
  parse_language_pairs(config.dev, config.columns, config.num_columns);
  const std::vector<double>& weights = config.sampler.weights;
  if (!weights.empty() && weights.size() != pairs) {
    throw_invalid(fmt::format("data.weights has {} share{} for {} language pair{} of data.train",
                              weights.size(), weights.size() == 1 ? "" : "s", pairs,
                              pairs == 1 ? "" : "s"));
  }
  if (!weights.empty() && *std::max_element(weights.begin(), weights.end()) == 0) {
    throw_invalid("data.weights are all 0: nothing would be drawn");
  }
  validate(config.corpus, config.model.max_seq_len);
  if (kernels::Isa isa; config.isa != "auto" && !kernels::parse_isa(config.isa.c_str(), &isa)) {
    throw_invalid(fmt::format("isa is \"{}\", expected auto, {}", config.isa, kernels::kIsaNames));
  }
  if (config.model.hidden_size % config.model.num_heads != 0) {
    throw_invalid(fmt::format("model.hidden_size {} is not a multiple of model.num_heads {}",
                              config.model.hidden_size, config.model.num_heads));
  }
  if (!config.mask &&
      (config.step.objectives.ugt_weight > 0 || config.step.objectives.smlm_weight > 0)) {
    throw_invalid("objective.ugt_weight and objective.smlm_weight need objective.mask = true");
  }
  if (const ObjectiveConfig& o = config.step.objectives;
      config.sampler.batch_pairs == 1 && o.xtr_weight + o.ugt_weight + o.smlm_weight == 0) {
    throw_invalid(
        "data.batch_pairs is 1, and the objectives all contrast the pairs of a batch: there would "
        "be nothing to learn");
  }
  if (config.model.num_layers == 0 && config.model.pooling == Pooling::kCls) {
    throw_invalid(
        "model.pooling = \"cls\" takes the first token's vector, which without layers "
        "(model.num_layers = 0) knows of no other");
  }
  if (config.checkpoint_every == 0 && config.checkpoint_minutes == 0) {
    throw_invalid("train.checkpoint_every and train.checkpoint_minutes are both 0: no checkpoints");
  }
  if (config.schedule.warmup == Warmup::kLinear && config.schedule.warmup_steps == 0) {
    throw_invalid("schedule.warmup = \"linear\" needs schedule.warmup_steps");
  }
  if (config.dev.empty() && config.dev_pairs == 0 && (config.patience > 0 || config.average > 0)) {
    throw_invalid(
        "train.patience and train.average go by evaluations, and without dev pairs there are none; "
        "set data.dev or data.dev_pairs");
  }
  validate(config.step.objectives);
}

std::vector<std::string> idle_keys(const TrainConfig& config) {
  const Schedule& s = config.schedule;
  const ObjectiveConfig& o = config.step.objectives;
  const bool words = o.xtr_weight > 0 || o.ugt_weight > 0;
  const bool dev = !config.dev.empty() || config.dev_pairs > 0;
  // What the name begins with, whether it is read, and the key that decides it.
  const std::tuple<std::string_view, bool, const char*> rules[] = {
      {"schedule.warmup_steps", s.warmup == Warmup::kLinear, "schedule.warmup"},
      {"schedule.step_", s.decay == Decay::kStep, "schedule.decay"},
      {"schedule.final_fraction", s.decay == Decay::kCosine, "schedule.decay"},
      {"objective.count_weighted", words, "objective.ugt_weight"},
      {"objective.clean_ids", words, "objective.ugt_weight"},
      {"objective.clean_ids", config.mask, "objective.mask"},
      {"objective.add_masses", o.ugt_weight > 0, "objective.ugt_weight"},
      {"objective.align_", o.align_weight > 0, "objective.align_weight"},
      {"objective.sim_", o.sim_weight > 0, "objective.sim_weight"},
      {"objective.info_nce_", o.info_nce_weight > 0, "objective.info_nce_weight"},
      {"data.dev_pairs", config.dev.empty(), "data.dev"},
      {"data.temperature", config.sampler.weights.empty(), "data.weights"},
      {"data.drop_last", config.sampler.batch_tokens == 0, "data.batch_tokens"},
      {"tokenizer.", config.tokenizer.empty(), "tokenizer.model"},
      {"tokenizer.", config.init.empty() || !config.tokenizer.empty(), "model.init"},
      {"train.epochs", config.steps == 0, "train.steps"},
      {"train.eval_every", dev, "data.dev_pairs"},
      {"train.select", dev, "data.dev_pairs"},
      {"train.dev_dropout", config.step.dropout > 0, "model.dropout"},
  };
  const TrainConfig usual(config.preset);
  std::vector<std::string> idle;
  for (const ConfigKey& key : kKeys) {
    if (value_text(key, config) == value_text(key, usual)) continue;
    for (const auto& [name, read, by] : rules) {
      if (read || key.full_name() == by || !key.full_name().starts_with(name)) continue;
      idle.push_back(
          fmt::format("{} ({} is {})", key.full_name(), by, value_text(*find_key(by), config)));
      break;
    }
  }
  return idle;
}

std::string value_text(const ConfigKey& key, const TrainConfig& config) {
  const Slot slot = key.slot(const_cast<TrainConfig&>(config));  // only read
  return std::visit(
      [](const auto& target) -> std::string {
        using T = std::decay_t<decltype(target)>;
        if constexpr (std::is_same_v<T, bool*>) {
          return *target ? "true" : "false";
        } else if constexpr (std::is_same_v<T, double*>) {
          return toml_number(*target);
        } else if constexpr (std::is_same_v<T, std::string*>) {
          return in_quotes(*target);
        } else if constexpr (std::is_same_v<T, Slot::Choice>) {
          return in_quotes(target.names[target.get()]);
        } else if constexpr (std::is_same_v<T, std::vector<std::string>*>) {
          return toml_list(*target, in_quotes);
        } else if constexpr (std::is_same_v<T, std::vector<double>*> ||
                             std::is_same_v<T, std::vector<int64_t>*>) {
          return toml_list(*target, [](auto item) { return toml_number(item); });
        } else {
          return std::to_string(*target);
        }
      },
      slot.target);
}

std::string to_toml(const TrainConfig& config, bool helps) {
  std::string text;
  std::string_view section;
  for (const ConfigKey& key : kKeys) {
    if (section != key.section) {
      section = key.section;
      text += fmt::format("\n[{}]\n", section);
    }
    if (helps && key.help[0] != '\0') text += fmt::format("# {}\n", key.help);
    text += fmt::format("{} = {}\n", key.name, value_text(key, config));
  }
  return text;
}

std::map<std::string, std::string> fixed_values(const TrainConfig& config) {
  std::map<std::string, std::string> values;
  for (const ConfigKey& key : kKeys) {
    if (!key.may_change) values[key.full_name()] = value_text(key, config);
  }
  return values;
}

std::string keys_as_markdown() {
  const TrainConfig defaults;
  std::string text = "| key | default | range | meaning |\n| --- | --- | --- | --- |\n";
  for (const ConfigKey& key : kKeys) {
    const Slot slot = key.slot(const_cast<TrainConfig&>(defaults));
    std::string range;
    if (const auto* names = std::get_if<Slot::Choice>(&slot.target)) {
      range = joined(names->names);
    } else if (std::holds_alternative<bool*>(slot.target)) {
      range = "true or false";
    } else if (slot.low != slot.high) {
      range = slot.high >= kMany ? fmt::format("≥ {}", slot.low)
                                 : fmt::format("{} … {}", slot.low, slot.high);
    }
    text += fmt::format("| `{}` | `{}` | {} | {}{} |\n", key.full_name(), value_text(key, defaults),
                        range, key.help, key.may_change ? " ¹" : "");
  }
  return text;
}

}  // namespace xsr::training
