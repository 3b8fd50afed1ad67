#pragma once
#include <string>

namespace xsr::training {

/// Whether plot_run draws a file of this name: it ends with .svg or .html.
bool is_picture_name(const std::string& name);

/// Draws RUN/metrics.jsonl: every part of the loss on the training batches and on dev, P@1 on dev,
/// learning rate, gradient norm and speed, each a panel of one picture. An .svg file, or an .html
/// page that holds the picture, the last figures and the run's config. Throws Error(IO, BAD_FILE;
/// INVALID_ARGUMENT: another suffix, or nothing to draw).
void plot_run(const std::string& run, const std::string& output);

}  // namespace xsr::training
