#pragma once
// What runs a built command-line tool in a folder of its own.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "tests/support/files.h"

namespace xsr::test {

struct Outcome {
  int exit_status = -1;  // 128 + signal for a process that a signal ended
  std::string out, err;
  long max_rss = 0;  // KiB
};

/// Goes before a command: a thread's stack is larger than all memory that the process may have.
constexpr char kNoThreads[] = "ulimit -s 4000000 && ulimit -v 2000000 && ";

class ToolTest : public testing::Test {
 protected:
  /// Under nohup the tool would inherit that a hang-up is ignored.
  explicit ToolTest(std::string tool)
      : tool_(std::move(tool)), hang_up_(::signal(SIGHUP, SIG_DFL)) {
    std::string name = std::filesystem::temp_directory_path() /
                       (std::filesystem::path(tool_).filename().string() + "-test-XXXXXX");
    folder_ = mkdtemp(name.data());
  }
  ~ToolTest() override {
    std::filesystem::remove_all(folder_);
    ::signal(SIGHUP, hang_up_);
  }
  void SetUp() override { ASSERT_TRUE(std::filesystem::exists(tool_)) << tool_; }

  std::string path(const std::string& name) const { return folder_ / name; }
  void write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path(name), std::ios::binary) << bytes;
  }

  /// Starts the tool in the test's folder; the arguments go through the shell.
  pid_t start(const std::string& arguments, const std::string& before = "") const {
    const pid_t child = fork();
    if (child == 0) {
      const std::string command = before + "exec " + tool_ + " " + arguments + " >out 2>err";
      if (chdir(folder_.c_str()) == 0) execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
      _exit(127);
    }
    return child;
  }
  Outcome wait_for(pid_t child) const {
    Outcome outcome;
    int status = 0;
    rusage usage = {};
    EXPECT_EQ(wait4(child, &status, 0, &usage), child);
    outcome.exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    outcome.max_rss = usage.ru_maxrss;
    outcome.out = read_file(path("out"));
    outcome.err = read_file(path("err"));
    return outcome;
  }
  Outcome run(const std::string& arguments, const std::string& before = "") const {
    return wait_for(start(arguments, before));
  }
  /// The exit status of a run whose arguments say themselves where its streams go.
  int status_of(const std::string& arguments) const {
    const std::string command = "cd " + folder_.string() + " && exec " + tool_ + " " + arguments;
    const int status = std::system(command.c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  const std::string tool_;
  std::filesystem::path folder_;

 private:
  void (*const hang_up_)(int);  // what it does to the tests themselves
};

}  // namespace xsr::test
