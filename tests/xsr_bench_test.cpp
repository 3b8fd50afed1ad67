// xsr-bench: what it measures with, what it refuses, and what it writes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "bench/peers/step_work.h"
#include "bench/random_model.h"
#include "runtime/device/machine.h"
#include "runtime/format/xsr_file.h"
#include "tests/support/packing.h"
#include "tests/support/sanitizers.h"

namespace xsr::bench {
namespace {

using nlohmann::json;
using testing::HasSubstr;

struct Result {
  int status = -1;
  std::string out, err;
};

std::string slurp(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(CpuModel, TellsGenerationsOfOneNameApart) {
  std::istringstream zen(
      "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n\n"
      "processor\t: 1\ncpu family\t: 26\nmodel\t\t: 2\n");
  EXPECT_EQ(cpu_model(zen), "AMD EPYC (family 25, model 1)");
  std::istringstream bare("processor\t: 0\nmodel name\t: A: B\n");
  EXPECT_EQ(cpu_model(bare), "A: B");
  std::istringstream nothing("");
  EXPECT_EQ(cpu_model(nothing), "unknown");
}

class XsrBench : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) /
              ("xsr_bench_test." + std::to_string(getpid()) + "." +
               testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
    if (!std::filesystem::exists(kFolder + tool_)) GTEST_SKIP() << tool_ << " is not built";
  }
  explicit XsrBench(std::string tool = "xsr-bench") : tool_(std::move(tool)) {}
  void TearDown() override { std::filesystem::remove_all(folder_); }

  Result run(const std::string& arguments) const { return run_to(arguments, path("out")); }
  Result run_to(const std::string& arguments, const std::string& out,
                const std::string& before = "") const {
    const std::string command = before + "'" + kFolder + tool_ + "' " + arguments + " >'" + out +
                                "' 2>'" + path("err") + "'";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, slurp(path("out")), slurp(path("err"))};
  }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  void write(const std::string& name, const void* data, size_t size) const {
    std::ofstream(path(name), std::ios::binary)
        .write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
  }

  // Small enough for the ref kernels under a sanitizer.
  const std::string quick_ =
      " --random 2,64,2,96,500 --tokens 1,7 --seconds 0.01 --sentences 40 --corpus-seconds 1 ";

 private:
  const std::string tool_;
  std::filesystem::path folder_;
  const std::string kFolder = XSR_BINARY_DIR "/bench/";
};

TEST_F(XsrBench, WritesTheKeysOfItsContract) {
  const Result done = run(quick_ + "--json -");
  ASSERT_EQ(done.status, 0) << done.err;
  const json figures = json::parse(done.out);
  for (const char* key : {"cpu", "isa", "dtype", "threads", "latency", "corpus", "roofline"})
    EXPECT_TRUE(figures.contains(key)) << key;
  EXPECT_EQ(figures["dtype"], "f32");
  EXPECT_EQ(figures["threads"], 1);
  ASSERT_EQ(figures["latency"].size(), 2u);
  EXPECT_EQ(figures["latency"][1]["tokens"], 7);
  for (const json& row : figures["latency"]) {
    EXPECT_GT(row["p50_us"], 0.0);
    EXPECT_LE(row["p50_us"], row["p90_us"]);
    EXPECT_LE(row["p90_us"], row["p99_us"]);
    EXPECT_GT(row["share_of_roofline"], 0.0);
    EXPECT_LT(row["share_of_roofline"], 1.0);
    EXPECT_GE(row["share_with_attention"], row["share_of_roofline"]);
  }
  for (const char* key : {"sentences_per_s", "tokens_per_s", "gflop_per_s", "share_of_roofline"})
    EXPECT_GT(figures["corpus"][key], 0.0) << key;
  EXPECT_EQ(figures["corpus"]["input"], "log-normal");
  EXPECT_EQ(figures["corpus"]["sentences"], 40);
  // 2 (4 C² + 2 C F) L
  EXPECT_EQ(figures["roofline"]["flop_per_token"], 2.0 * (4 * 64 * 64 + 2 * 64 * 96) * 2);
  EXPECT_EQ(figures["roofline"]["flop_per_token_pair"], 4.0 * 64 * 2);
  // f32 panels of qkv, attention output, up and down
  EXPECT_EQ(figures["roofline"]["weight_bytes"], 4 * 2 * (192 * 64 + 64 * 64 + 96 * 64 + 64 * 96));
  EXPECT_THAT(done.err, HasSubstr("roofline"));  // the table
}

TEST_F(XsrBench, AQkvTableLeavesItsProductsAndWeightsOut) {
  const Result done = run(quick_ + "--qkv-table --no-corpus --yardstick none --json -");
  ASSERT_EQ(done.status, 0) << done.err;
  const json figures = json::parse(done.out);
  EXPECT_EQ(figures["qkv_table"], true);
  EXPECT_EQ(figures["roofline"]["flop_per_token"], 90112);   // 114688 - 6 · 64²
  EXPECT_EQ(figures["roofline"]["weight_bytes"], 180224);    // 229376 - 4 · 192 · 64
  EXPECT_EQ(figures["model"]["token_table_bytes"], 128000);  // 4 · 500 · 64
}

TEST_F(XsrBench, TheWeightsAreCountedAsTheSessionReadsThem) {
  const std::string rest = "--no-corpus --yardstick none --json - ";
  for (const auto& [options, bytes] :
       {std::pair("--dtype int8 --storage f32", 1), std::pair("--dtype int8 --storage i8", 1),
        std::pair("--dtype bf16", 2), std::pair("--dtype bf16x3 --storage bf16", 4),
        std::pair("--dtype f32 --storage bf16", 2), std::pair("--dtype f32 --storage i8", 4)}) {
    const Result done = run(quick_ + rest + options);
    ASSERT_EQ(done.status, 0) << done.err;
    EXPECT_EQ(json::parse(done.out)["roofline"]["weight_bytes"], 57344 * bytes) << options;
  }
}

TEST_F(XsrBench, SeveralThreadCountsGiveAnArray) {
  const Result done = run(quick_ + "--threads 1,2 --yardstick none --json '" + path("json") + "'");
  ASSERT_EQ(done.status, 0) << done.err;
  const json figures = json::parse(slurp(path("json")));
  ASSERT_TRUE(figures.is_array());
  ASSERT_EQ(figures.size(), 2u);
  EXPECT_EQ(figures[0]["threads"], 1);
  EXPECT_EQ(figures[1]["threads"], 2);
  EXPECT_THAT(done.out, HasSubstr("2 threads"));
}

TEST_F(XsrBench, MoreThreadsThanProcessorsHaveNoMorePeak) {
  const std::string on_one = "taskset -c " + std::to_string(sched_getcpu()) + " ";
  const auto roofline = [&](const std::string& threads) {
    const Result done = run_to(
        quick_ + "--no-corpus --yardstick none --json - --threads " + threads, path("out"), on_one);
    EXPECT_EQ(done.status, 0) << done.err;
    return json::parse(done.out)["roofline"];
  };
  const json one = roofline("1"), eight = roofline("8");
  for (const char* rate : {"peak_gflop_per_s", "read_gb_per_s"})
    EXPECT_LT(eight[rate], 3 * one[rate].get<double>()) << rate;
}

/// Some of those that measure the roofline start, and wait for the others.
TEST_F(XsrBench, FewerThreadsThanTheRooflineNeedsAreAFailure) {
  if (test::kSlow) GTEST_SKIP() << "sanitizers take more addresses";
  // Stacks of 500 MB: seven are the session's.
  const Result done = run_to(quick_ + "--no-corpus --threads 8", path("out"),
                             "ulimit -s 500000 && ulimit -v 6000000 && ");
  EXPECT_EQ(done.status, 1);
  EXPECT_THAT(done.err, HasSubstr("xsr-bench: cannot start a thread: "));
}

TEST_F(XsrBench, TimesEveryIsaAndStorage) {
  unsetenv("XSR_FORCE_ISA");  // it would cap what is asked for here
  for (const char* isa : {"ref", "avx2"}) {
    const Result done = run(quick_ + "--storage bf16 --json - --isa " + isa);
    ASSERT_EQ(done.status, 0) << done.err;
    EXPECT_EQ(json::parse(done.out)["isa"], isa);
    EXPECT_EQ(json::parse(done.out)["model"]["storage"], "bf16");
  }
}

/// What is timed, not only what the figures are named after: narrow products round more.
TEST_F(XsrBench, TheSessionComputesInWhatIsAskedFor) {
  unsetenv("XSR_FORCE_ISA");  // the ref kernels compute in f32 alone
  const auto checked = [&](const std::string& dtype) {
    const Result done = run(quick_ + "--no-corpus --yardstick none --json - --dtype " + dtype);
    EXPECT_EQ(done.status, 0) << done.err;
    return json::parse(done.out)["check"];
  };
  const double of_f32 = checked("f32")["allowed"];
  for (const char* dtype : {"bf16", "int8"})
    EXPECT_GT(checked(dtype)["largest_difference"], of_f32) << dtype;
}

TEST_F(XsrBench, OneThreadIsOnTheProcessorThatIsAskedForElseTheLast) {
  cpu_set_t allowed;
  ASSERT_EQ(sched_getaffinity(0, sizeof allowed, &allowed), 0);
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &allowed)) cpus.push_back(cpu);
  const std::string timed = quick_ + "--no-corpus --yardstick none --json - ";
  const auto pinned = [&](const std::string& options) {
    const Result done = run(timed + options);
    EXPECT_EQ(done.status, 0) << done.err;
    return json::parse(done.out)["pinned_cpu"];
  };
  EXPECT_EQ(pinned(""), cpus.back());
  EXPECT_EQ(pinned("--cpu " + std::to_string(cpus.front())), cpus.front());
  EXPECT_EQ(pinned("--threads 2"), nullptr) << "two threads on one processor would take turns";
  const Result elsewhere = run(timed + "--cpu 4095");
  EXPECT_EQ(elsewhere.status, 1);
  EXPECT_THAT(elsewhere.err, HasSubstr("--cpu 4095: Invalid argument; this process may not run"));
}

TEST_F(XsrBench, NoThreadsAreAsManyAsTheSessionTakes) {
  const Result done = run(quick_ + "--no-corpus --yardstick none --json - --threads 0");
  ASSERT_EQ(done.status, 0) << done.err;
  EXPECT_GE(json::parse(done.out)["threads"], 1);
}

TEST_F(XsrBench, LengthsBeyondTheModelsMostAreLeftOut) {
  const Result done =
      run("--random 2,64,2,96,500 --tokens 200,201 --seconds 0.01 --no-corpus --yardstick none "
          "--json -");
  ASSERT_EQ(done.status, 0) << done.err;
  EXPECT_THAT(done.err, HasSubstr("201 tokens are left out, the model takes 200 at most"));
  const json latency = json::parse(done.out)["latency"];
  ASSERT_EQ(latency.size(), 1u);
  EXPECT_EQ(latency[0]["tokens"], 200);
}

/// A sentence's time is not the corpus's.
TEST_F(XsrBench, TheCorpusHasATimeOfItsOwn) {
  const Result done =
      run("--random 2,64,2,96,500 --isa ref --tokens 1 --seconds 0.001 --sentences 100 "
          "--corpus-seconds 60 --yardstick none --json -");
  ASSERT_EQ(done.status, 0) << done.err;
  const json figures = json::parse(done.out);
  EXPECT_LE(figures["latency"][0]["calls"], 100);
  EXPECT_EQ(figures["corpus"]["sentences"], 100) << "32 are done in a millisecond";
  EXPECT_EQ(figures["corpus"]["passes"], 3);
}

TEST_F(XsrBench, TheYardstickIsForWhatItComputesToo) {
  const auto figures = [&](const std::string& options) {
    const Result done = run(quick_ + "--no-corpus --json - " + options);
    EXPECT_EQ(done.status, 0) << done.err;
    return json::parse(done.out);
  };
  const size_t rows = figures("")["onednn_chain"].size();
  EXPECT_TRUE(rows == 0 || rows == 2) << rows << "; none without oneDNN";
  EXPECT_EQ(figures("--yardstick none")["onednn_chain"].size(), 0u);
  EXPECT_EQ(figures("--dtype bf16")["onednn_chain"].size(), 0u);
  const json cls = figures("--pooling cls");
  EXPECT_EQ(cls["onednn_chain"].size(), 0u) << "its last layer is of first tokens alone";
  EXPECT_EQ(cls["model"]["pooling"], "cls");
  EXPECT_EQ(cls["roofline"]["flop_per_sentence"], 2.0 * (64 * 64 + 2 * 64 * 96));
}

TEST_F(XsrBench, ARandomModelStoresWhatIsAskedForElseWhatIsComputedIn) {
  const auto stored = [&](const std::string& options) {
    const Result done = run(quick_ + "--no-corpus --yardstick none --json - " + options);
    return done.status == 0 ? json::parse(done.out)["model"]["storage"].get<std::string>()
                            : done.err;
  };
  EXPECT_EQ(stored(""), "f32");
  EXPECT_EQ(stored("--dtype bf16"), "bf16");
  EXPECT_EQ(stored("--dtype int8"), "i8");
  EXPECT_EQ(stored("--dtype int8 --storage bf16"), "bf16");
  EXPECT_EQ(stored("--storage f16"), "f16");
  EXPECT_THAT(stored("--dtype bf16 --storage f32"), HasSubstr("leave --storage out"));
}

TEST_F(XsrBench, ARandomModelHasTheActivationThatIsAskedFor) {
  const auto found = [&](const std::string& options) {
    const Result done = run(quick_ + "--no-corpus --yardstick none --json - " + options);
    EXPECT_EQ(done.status, 0) << done.err;
    return json::parse(done.out)["model"]["activation"].get<std::string>();
  };
  EXPECT_EQ(found(""), "swish");
  EXPECT_EQ(found("--activation gelu"), "gelu");
}

TEST_F(XsrBench, StorageIsOfARandomModelAlone) {
  const Result done = run("--model any.xsr --storage bf16");
  EXPECT_EQ(done.status, 2);
  EXPECT_THAT(done.err, HasSubstr("--storage requires --random"));
}

TEST_F(XsrBench, RefusesToTimeAWrongResult) {
  // A NaN among the weights reaches every embedding, and NaN equals nothing.
  const RandomModel model({2, 64, 2, 96, 500}, DType::kF32, 1);
  std::vector<unsigned char> bytes(model.size());
  memcpy(bytes.data(), model.data(), model.size());
  const auto file = XsrFile::open_memory(model.data(), model.size());
  const TensorView* weight = file->find("layer.1.down.weight");
  ASSERT_NE(weight, nullptr);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  memcpy(bytes.data() + weight->offset, &nan, sizeof nan);
  write("nan.xsr", bytes.data(), bytes.size());
  const Result done = run("-m '" + path("nan.xsr") + "' --no-corpus --seconds 0.01");
  EXPECT_EQ(done.status, 1);
  EXPECT_THAT(done.err, HasSubstr("a wrong result is not timed"));
  EXPECT_EQ(done.out, "");
}

TEST_F(XsrBench, TakesACorpusOfIds) {
  const std::string ids = "3 4 5\n\n499 0\n";
  write("ids", ids.data(), ids.size());
  const Result done = run(quick_ + "--json - --corpus-ids '" + path("ids") + "'");
  ASSERT_EQ(done.status, 0) << done.err;
  const json corpus = json::parse(done.out)["corpus"];
  EXPECT_EQ(corpus["input"], "ids");
  EXPECT_EQ(corpus["sentences"], 3);
  EXPECT_EQ(corpus["tokens"], 5);
}

TEST_F(XsrBench, TakesAPackedCorpus) {
  const std::string ids = test::gzip("3 4 5\n\n499 0\n");
  write("ids.gz", ids.data(), ids.size());
  Result done = run(quick_ + "--json - --corpus-ids '" + path("ids.gz") + "'");
  ASSERT_EQ(done.status, 0) << done.err;
  EXPECT_EQ(json::parse(done.out)["corpus"]["tokens"], 5);
  const std::string text = test::zstd("A black cat.\n\nUn chat noir.\n");
  write("text.zst", text.data(), text.size());
  const std::string timed = "-m '" XSR_SOURCE_DIR
                            "/models/xsr-multi.xsr' --tokens 1 --seconds 0.01 "
                            "--corpus-seconds 0.01 --yardstick none --json - --corpus ";
  done = run(timed + "'" + path("text.zst") + "'");
  ASSERT_EQ(done.status, 0) << done.err;
  EXPECT_EQ(json::parse(done.out)["corpus"]["sentences"], 3);
  write("text.zst", text.data(), text.size() - 1);
  done = run(timed + "'" + path("text.zst") + "'");
  EXPECT_EQ(done.status, 1);
  EXPECT_THAT(done.err, HasSubstr("text.zst: the zstd data ends early, behind byte "));
}

TEST_F(XsrBench, SaysWhatIsWrongWithACorpus) {
  const std::string ids = "3 4\n5 500\n";
  write("ids", ids.data(), ids.size());
  Result done = run(quick_ + "--corpus-ids '" + path("ids") + "'");
  EXPECT_EQ(done.status, 1);
  EXPECT_THAT(done.err, HasSubstr("line 2: \"500\" is not a token id in [0, 500)"));
  for (const std::string word : {"-1", "4x", "4.5", "4,5", "9999999999", "cat"}) {
    const std::string line = "3\t4\r\n 2 " + word + " 5\n";
    write("ids", line.data(), line.size());
    done = run(quick_ + "--corpus-ids '" + path("ids") + "'");
    EXPECT_EQ(done.status, 1) << word;
    EXPECT_THAT(done.err, HasSubstr("line 2: \"" + word + "\" is not a token id in [0, 500)"));
  }
  write("empty", "", 0);
  done = run(quick_ + "--corpus-ids '" + path("empty") + "'");
  EXPECT_EQ(done.status, 1);
  EXPECT_THAT(done.err, HasSubstr("empty: no lines in it"));
  done = run(quick_ + "--corpus '" + path("ids") + "'");
  EXPECT_EQ(done.status, 1);
  EXPECT_THAT(done.err, HasSubstr("no tokenizer"));
  done = run(quick_ + "--corpus-ids '" + path("missing") + "'");
  EXPECT_EQ(done.status, 1);
  EXPECT_THAT(done.err, HasSubstr("No such file"));
  done = run(quick_ + "--corpus-ids '" + path(".") + "'");
  EXPECT_EQ(done.status, 1);
  EXPECT_THAT(done.err, HasSubstr("cannot read: Is a directory"));
  write("blank", "\n\n", 2);
  done = run(quick_ + "--corpus-ids '" + path("blank") + "'");
  EXPECT_EQ(done.status, 1);
  EXPECT_THAT(done.err, HasSubstr("blank: no sentence has tokens"));
}

TEST_F(XsrBench, FiguresThatCannotBeWrittenAreAFailure) {
  const std::string quick = quick_ + "--no-corpus --yardstick none ";
  for (const char* json : {"", "--json - "}) {
    EXPECT_EQ(run_to(quick + json, "/dev/full").status, 1) << json;
    EXPECT_THAT(slurp(path("err")),
                HasSubstr("xsr-bench: standard output: cannot write; is it closed"));
  }
  write("figures.json", "old", 3);
  const std::string to_file = quick + "--json '" + path("figures.json") + "'";
  EXPECT_EQ(run_to(to_file, "/dev/null", "ulimit -f 1; ").status, 1);
  EXPECT_THAT(slurp(path("err")), HasSubstr("figures.json.partial: cannot write after "));
  EXPECT_EQ(slurp(path("figures.json")), "old");
  EXPECT_FALSE(std::filesystem::exists(path("figures.json.partial")));
  EXPECT_EQ(run_to(to_file, "/dev/null").status, 0);
  EXPECT_GT(slurp(path("figures.json")).size(), 1024u) << "more than the limit";
}

TEST_F(XsrBench, FiguresDoNotTakeThePlaceOfAnInput) {
  const std::string model = slurp(XSR_SOURCE_DIR "/models/xsr-multi.xsr");
  write("model.xsr", model.data(), model.size());
  write("ids", "3 4 5\n", 6);
  const std::string timed = " --tokens 1 --seconds 0.01 --corpus-seconds 0.01 --yardstick none ";
  const std::pair<std::string, std::string> cases[] = {
      {"model.xsr", "--corpus-ids"}, {"ids", "--corpus-ids"}, {"ids", "--corpus"}};
  for (const auto& [file, corpus] : cases) {
    const Result done = run("-m '" + path("model.xsr") + "' " + corpus + " '" + path("ids") + "'" +
                            timed + "--json '" + path(file) + "'");
    EXPECT_EQ(done.status, 1);
    EXPECT_THAT(done.err, HasSubstr(file + ": is an input too, which would be overwritten"));
    EXPECT_EQ(done.out, "") << "nothing was timed";
  }
  EXPECT_TRUE(slurp(path("model.xsr")) == model);
  EXPECT_EQ(slurp(path("ids")), "3 4 5\n");
}

TEST_F(XsrBench, AModelsNameMayBeNoUtf8) {
  std::filesystem::create_symlink(XSR_SOURCE_DIR "/models/xsr-multi.xsr", path("caf\xe9.xsr"));
  const Result done = run("-m '" + path("caf\xe9.xsr") +
                          "' --tokens 1 --seconds 0.01 --no-corpus --yardstick none --json -");
  ASSERT_EQ(done.status, 0) << done.err;
  EXPECT_THAT(json::parse(done.out)["model"]["name"].get<std::string>(),
              testing::EndsWith("/caf\uFFFD.xsr"));
}

/// The table beside them is words for people.
TEST_F(XsrBench, FiguresComeWhereTheTableCannotBeWritten) {
  for (const std::string closed : {"2>&-", "2>/dev/full"}) {
    const Result figures =
        run_to(quick_ + "--json -", path("out"), "sh -c '\"$0\" \"$@\" " + closed + "' ");
    ASSERT_EQ(figures.status, 0) << closed;
    EXPECT_GT(json::parse(figures.out)["latency"].size(), 0u) << closed;
  }
}

TEST_F(XsrBench, UsageErrorsExitWithTwo) {
  EXPECT_EQ(run("").status, 2);
  EXPECT_EQ(run("--random 2,64").status, 2);
  EXPECT_EQ(run(quick_ + "--isa sse").status, 2);
  const Result endless = run(quick_ + "--seconds nan");
  EXPECT_EQ(endless.status, 2);
  EXPECT_THAT(endless.err, HasSubstr("--seconds: Value nan not in range 0.001 to 3600"));
  const Result numbered = run("--random 2,64,2,96,500 --pooling 1");
  EXPECT_EQ(numbered.status, 2) << "names alone";
  EXPECT_THAT(numbered.err, HasSubstr("--pooling: 1 not in {cls,max,mean}"));
  EXPECT_EQ(run(quick_ + "-m model.xsr").status, 2);
  for (const char* two :
       {"--corpus a --corpus-ids a", "--corpus a --no-corpus", "--corpus-ids a --no-corpus"}) {
    EXPECT_EQ(run(quick_ + two).status, 2) << two;
  }
  for (const std::string option : {"--corpus", "--corpus-ids", "--json"}) {
    const Result unset = run(quick_ + option + " ''");
    EXPECT_EQ(unset.status, 2) << option;
    EXPECT_THAT(unset.err, HasSubstr(option + ": names no file; leave it out, or give one"));
  }
  EXPECT_EQ(run("--help").status, 0);
  EXPECT_THAT(run("--version").out, HasSubstr("xsr-bench "));
  EXPECT_EQ(run(quick_ + "--device gpu").status, 2);
  const Result impossible = run("--random 2,64,3,96,500");
  EXPECT_EQ(impossible.status, 1);
  EXPECT_THAT(impossible.err, HasSubstr("heads"));
  const Result nowhere = run(quick_ + "--json /no/such/x.json");
  EXPECT_EQ(nowhere.status, 1);
  EXPECT_THAT(nowhere.err, HasSubstr("/no/such/x.json.partial: cannot create the file"));
  EXPECT_EQ(nowhere.out, "") << "nothing was timed";
}

const std::string kSteps = "--random 1,32,2,48,300 --pairs 2,3 --seconds 0.01 --json - ";

/// Of the model of kSteps; narrow_bytes: of a parameter's bf16 copy, which an update writes too.
void expect_steps(const json& figures, int narrow_bytes) {
  EXPECT_EQ(figures["check"]["allowed"], figures["precision"] == "f32" ? 1e-4 : 2e-2);
  EXPECT_LT(figures["check"]["loss"], figures["check"]["allowed"]);
  EXPECT_LT(figures["check"]["gradient_norm"], figures["check"]["allowed"]);
  const double peak = figures["roofline"]["peak_gflop_per_s"],
               objectives_peak = figures["roofline"]["objectives_peak_gflop_per_s"],
               bandwidth = figures["roofline"]["gb_per_s"], parameters = figures["parameters"];
  EXPECT_GT(figures["roofline"]["gb_per_s"], 0.0);
  ASSERT_EQ(figures["batches"].size(), 2u);
  EXPECT_EQ(figures["batches"][1]["pairs"], 3);
  for (const json& row : figures["batches"]) {
    EXPECT_GT(row["median_ms"], 0.0);
    EXPECT_NEAR(row["floor_ms"].get<double>(),
                row["floor_products_ms"].get<double>() + row["floor_update_ms"].get<double>(),
                1e-9);
    // XTR of the mean batch, three products each; Adam with amsgrad, no clipping.
    const double encoder = 3.0 * 2 * (4 * 32 * 32 + 2 * 32 * 48) * row["tokens"].get<double>(),
                 head = 3.0 * 2 * (32 * 32 + 32 * 300) * 2 * row["pairs"].get<double>();
    EXPECT_NEAR(row["floor_products_ms"].get<double>(),
                1e-6 * (encoder / peak + head / objectives_peak), 1e-9);
    EXPECT_NEAR(row["floor_update_ms"].get<double>(),
                1e-6 * parameters * (4 + 4 * 8 + narrow_bytes) / bandwidth, 1e-9);
    EXPECT_LT(row["share_of_floor"], 1.0);
    EXPECT_GT(row["share_of_floor"], 0.0);
  }
}

class XsrTrainBench : public XsrBench {
 protected:
  XsrTrainBench() : XsrBench("xsr-train-bench") {}
};

TEST_F(XsrTrainBench, TimesStepsOfTraining) {
  for (const std::string precision : {"f32", "bf16"}) {
    const Result done = run(kSteps + "--precision " + precision);
    ASSERT_EQ(done.status, 0) << done.err;
    const json figures = json::parse(done.out);
    EXPECT_EQ(figures["device"], "cpu");
    EXPECT_EQ(figures["precision"], precision);
    expect_steps(figures, precision == "bf16" ? 2 : 0);
    EXPECT_THAT(done.err, HasSubstr("ms a step"));  // the table
  }
}

TEST_F(XsrTrainBench, SaysWhatIsWrongWithStepsOfTraining) {
  Result done = run(kSteps + "--precision tf32");
  EXPECT_EQ(done.status, 1);
  EXPECT_THAT(done.err, HasSubstr("for CUDA devices alone"));
  done = run(kSteps + "--exchange");
  EXPECT_EQ(done.status, 1);
  EXPECT_THAT(done.err, HasSubstr("for CUDA devices alone"));
  done = run(kSteps + "--precision int8 --device cuda");
  EXPECT_EQ(done.status, 1);
  EXPECT_THAT(done.err, HasSubstr("--precision int8 is for the processor"));
  done = run(kSteps + "--vocabulary-tile 16");
  EXPECT_EQ(done.status, 1);
  EXPECT_THAT(done.err, HasSubstr("--vocabulary-tile is for CUDA devices alone"));
  done = run(kSteps + "--device gpu");
  EXPECT_EQ(done.status, 2);
  done = run("--random 1,32,2,48,300 --json ''");
  EXPECT_EQ(done.status, 2);
  EXPECT_THAT(done.err, HasSubstr("--json: names no file"));
  done = run("--random 0,32,2,48,300");
  EXPECT_EQ(done.status, 2);
  EXPECT_THAT(done.err, HasSubstr("--random: Value 0 not in range 1 to 2147483647"));
  done = run("--random 1,33,2,48,300");
  EXPECT_EQ(done.status, 1);
  EXPECT_THAT(done.err, HasSubstr("num_heads is 2, expected a divisor of hidden_size 33"));
  EXPECT_EQ(done.out, "") << "nothing was timed";
  setenv("XSR_TRAIN_CUDA_LIBRARY", "/no/such/library.so", 1);
  done = run(kSteps + "--device cuda");
  unsetenv("XSR_TRAIN_CUDA_LIBRARY");
  EXPECT_EQ(done.status, 1);
  EXPECT_THAT(done.err, HasSubstr("training on a CUDA device needs libxsr_train_cuda.so"));
}

TEST(StepWork, CountsWhatAStepCannotDoWithout) {
  ModelConfig model;
  model.num_layers = 3;
  model.hidden_size = 8;
  model.intermediate_size = 16;
  model.vocab_size = 100;
  training::PairBatch batch;
  batch.num_pairs = 2;
  batch.cu_seqlens = {0, 1, 4, 5, 10};
  training::StepConfig step;
  const auto work = [&] {
    StepWork counted;
    counted.add(step, model, 1000, batch);
    return counted;
  };
  EXPECT_EQ(work().forward, 2 * (4 * 8 * 8 + 2 * 8 * 16) * 3 * 10);
  EXPECT_EQ(work().backward, 2 * work().forward);
  EXPECT_EQ(work().objectives, 3 * 2 * (8 * 8 + 8 * 100) * 4);
  // The gradient, and values and three moments back and forth.
  EXPECT_EQ(work().update_bytes, 1000 * (4 + 4 * 8));
  step.optimizer.amsgrad = false;
  EXPECT_EQ(work().update_bytes, 1000 * (4 + 3 * 8));
  step.optimizer.clip_norm = 1;  // which reads the gradient first
  EXPECT_EQ(work().update_bytes, 1000 * (8 + 3 * 8));
  step.precision = training::Precision::kBF16;
  EXPECT_EQ(work().update_bytes, 1000 * (8 + 3 * 8 + 2));
  step.objectives.ugt_weight = 0;
  EXPECT_EQ(work().objectives, 0);

  StepRoofline roofline;
  roofline.encoder.peak_gflops = 2;
  roofline.objectives.peak_gflops = 1;
  roofline.objectives.read_gb_per_s = 4;
  StepWork whole;
  whole.forward = whole.objectives = 2e9;
  whole.backward = 4e9;
  whole.update_bytes = 2e9;
  EXPECT_DOUBLE_EQ(whole.product_seconds(roofline), 3 + 2);
  EXPECT_DOUBLE_EQ(whole.update_seconds(roofline), 0.5);
  EXPECT_DOUBLE_EQ(whole.floor_seconds(roofline), 5.5);
}

class XsrTrainSteps : public XsrBench {
 protected:
  XsrTrainSteps() : XsrBench("xsr-train-steps") {}
};

TEST_F(XsrTrainSteps, EndsAsEveryToolDoes) {
  EXPECT_EQ(run("").status, 2);
  const Result none = run("--steps 0");
  EXPECT_EQ(none.status, 2);
  EXPECT_THAT(none.err, HasSubstr("--steps: Value 0 not in range 1 to "));
  std::string pairs;
  for (int i = 0; i < 200; ++i) pairs += "a b c d e\tf g h i j\n";
  write("pairs.tsv", pairs.data(), pairs.size());
  const std::string steps =
      "--steps 1 --set run='" + path("run") + "' data.train='" + path("pairs.tsv") +
      "' tokenizer.vocab_size=20 data.dev_pairs=0 model.num_layers=1 model.hidden_size=8 "
      "model.num_heads=2 model.intermediate_size=8 data.batch_pairs=4 ";
  const Result over = run(steps + "-o '" + path("pairs.tsv") + "' </dev/null");
  EXPECT_EQ(over.status, 1);
  EXPECT_THAT(over.err, HasSubstr("pairs.tsv: is an input too, which would be overwritten"));
  EXPECT_EQ(slurp(path("pairs.tsv")), pairs);
  for (const std::string line : {"step x", "step 1x", "step -1", "steps 1", "step"}) {
    const Result words = run_to(steps, path("out"), "echo " + line + " | ");
    EXPECT_EQ(words.status, 1) << line;
    EXPECT_THAT(words.err, HasSubstr("stdin has \"" + line + "\", expected \"step N\""));
  }
}

class XsrTokenizerBench : public XsrBench {
 protected:
  XsrTokenizerBench() : XsrBench("xsr_tokenizer_bench") {}
  const std::string model_ = XSR_SOURCE_DIR "/models/xsr-multi.xsr ";
};

TEST_F(XsrTokenizerBench, AFullStandardOutputIsTold) {
  const std::string text = test::gzip("A cat.\n");
  write("text", text.data(), text.size());
  const std::string list = model_ + "'" + path("text") + "' --benchmark_list_tests";
  const Result done = run(list);
  EXPECT_EQ(done.status, 0) << done.err;
  EXPECT_THAT(done.out, HasSubstr("encode/text/warm\n"));
  EXPECT_EQ(run_to(list, "/dev/full").status, 1);
  EXPECT_THAT(slurp(path("err")), HasSubstr("xsr_tokenizer_bench: standard output: cannot write"));
}

class XsrMicrobench : public XsrBench {
 protected:
  XsrMicrobench() : XsrBench("xsr_microbench") {}
};

TEST_F(XsrMicrobench, AFullStandardOutputIsTold) {
  const std::string list = "--benchmark_list_tests";
  EXPECT_EQ(run(list).status, 0);
  EXPECT_EQ(run_to(list, "/dev/full").status, 1);
  EXPECT_THAT(slurp(path("err")), HasSubstr("xsr_microbench: standard output: cannot write"));
}

TEST_F(XsrTokenizerBench, WhereThereIsNoLineNothingIsTimed) {
  write("empty", "", 0);
  const std::pair<const char*, const char*> cases[] = {{"empty", "empty: has no lines"},
                                                       {".", "cannot read: Is a directory"}};
  for (const auto& [text, message] : cases) {
    const Result done = run(model_ + "'" + path(text) + "' --benchmark_list_tests");
    EXPECT_EQ(done.status, 1) << text;
    EXPECT_THAT(done.err, HasSubstr(message));
    EXPECT_EQ(done.out, "");
  }
}

TEST_F(XsrBench, SaysWhatACudaDeviceLacks) {
  setenv("XSR_CUDA_LIBRARY", "/no/such/libxsr_cuda.so", 1);
  const Result done = run(quick_ + "--device cuda");
  unsetenv("XSR_CUDA_LIBRARY");
  EXPECT_EQ(done.status, 1);
  EXPECT_THAT(done.err, HasSubstr("a CUDA session needs libxsr_cuda.so"));
}

#ifdef XSR_CUDA_EMULATED_MODULE
TEST_F(XsrBench, TimesACudaDevice) {
  setenv("XSR_CUDA_LIBRARY", XSR_CUDA_EMULATED_MODULE, 1);
  const Result done = run(
      "--random 1,32,2,48,500 --tokens 3 --seconds 0.01 --sentences 4 --dtype bf16 --device cuda "
      "--qkv-table --json -");
  unsetenv("XSR_CUDA_LIBRARY");
  ASSERT_EQ(done.status, 0) << done.err;
  const json figures = json::parse(done.out);
  EXPECT_EQ(figures["device"], "emulated device");
  EXPECT_GT(figures["latency"][0]["device_us"], 0.0);
  EXPECT_GT(figures["corpus"]["resident_tokens_per_s"], 0.0);
  EXPECT_GT(figures["roofline"]["peak_gflop_per_s"], 0.0);
  EXPECT_GT(figures["roofline"]["read_gb_per_s"], 0.0);
  EXPECT_THAT(done.err, HasSubstr("with the ids on the device beforehand"));
}

TEST_F(XsrTrainBench, TimesStepsOfTrainingOnACudaDevice) {
  setenv("XSR_CUDA_LIBRARY", XSR_CUDA_EMULATED_MODULE, 1);
  setenv("XSR_TRAIN_CUDA_LIBRARY", XSR_TRAIN_CUDA_EMULATED_MODULE, 1);
  const Result done =
      run(kSteps + "--device cuda --precision tf32 --exchange --vocabulary-tile 32");
  const Result odd = run(kSteps + "--device cuda --vocabulary-tile 33");
  setenv("XSR_EMULATED_DEVICES", "2", 1);
  const Result two = run("--random 1,8,1,8,20 --pairs 2 --seconds 0.01 --json - --device cuda:0,1");
  unsetenv("XSR_EMULATED_DEVICES");
  unsetenv("XSR_CUDA_LIBRARY");
  unsetenv("XSR_TRAIN_CUDA_LIBRARY");
  ASSERT_EQ(two.status, 0) << two.err;
  EXPECT_EQ(json::parse(two.out)["device"], "emulated device, emulated device");
  ASSERT_EQ(done.status, 0) << done.err;
  const json figures = json::parse(done.out);
  EXPECT_EQ(figures["device"], "emulated device");
  EXPECT_EQ(figures["exchange"], true);
  EXPECT_EQ(figures["vocabulary_tile"], 32);
  expect_steps(figures, 0);
  EXPECT_EQ(odd.status, 1);
  EXPECT_THAT(odd.err, HasSubstr("a vocabulary_tile of 33, expected"));
}
#endif

}  // namespace
}  // namespace xsr::bench
