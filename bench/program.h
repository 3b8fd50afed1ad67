#pragma once
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <string>

#include "runtime/device/cuda_library.h"
#include "runtime/error.h"
#include "runtime/text/standard_streams.h"

namespace xsr::bench {

/// Reads the arguments and gives what body() returns, for main to return. Words for people go to
/// stderr, behind `name`, with 2 for arguments that do not fit and 1 for an exception of body.
/// device: what app puts --device in.
template <typename Body>
int run_program(const char* name, CLI::App& app, int argc, char** argv, const std::string& device,
                Body&& body) {
  return run_tool(name, [&] {
    try {
      app.parse(argc, argv);
      cuda_devices_of(device);
    } catch (const CLI::ParseError& error) {
      return app.exit(error) == 0 ? 0 : 2;
    } catch (const Error& error) {
      tell(fmt::format("{}: {}\n", name, error.what()));
      return 2;
    }
    return body();
  });
}

}  // namespace xsr::bench
