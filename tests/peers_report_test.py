"""bench/peers: statistics, table, plot and command line. No engine, no network, nothing installed."""

import contextlib
import io
import pathlib
import sys
import unittest
import xml.etree.ElementTree as ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "bench/peers"))
sys.dont_write_bytecode = True
import bench_peers
import peer_files
import peer_report


def row(key, engine, dtype, p1, text, ratio, **more):
    return {
        "key": key, "name": key, "engine": engine, "dtype": dtype, "kind": "xsr" if engine == "xsr" else "peer",
        "version": "1", "cosine": {"min": 1.0, "mean": 1.0}, "p1": {"forward": p1, "backward": p1},
        "text": {"p50_s": text, "p10_s": text, "sentences_per_s": 1000 / text, "ratio": ratio, "against": "xsr f32"},
        **more,
    }  # fmt: skip


def report(rows):
    return {
        "heading": "A CPU.", "plot_title": "speed < quality", "tokens": 20, "cores": 2, "rows": rows,
        "pairs": {"forward": "→", "backward": "←"}, "races": {"text": "words"}, "not_run": {"x-bf16": "no bf16"},
    }  # fmt: skip


ROWS = [
    row("xsr f32", "xsr", "f32", 0.85, 1.0, 1.0),
    row("xsr f32 table", "xsr", "f32", 0.85, 0.5, 0.5, table=True),
    row("slow", "sentence-transformers", "f32", 0.85, 5.0, 5.0),
    row("near", "ONNX Runtime", "f32", 0.849, 2.0, 2.0),
    row("quick <worse>", "CTranslate2", "int8", 0.80, 0.8, 0.8),
]


class PeerReport(unittest.TestCase):
    def test_summary_interpolates_the_10th_percentile(self):
        self.assertEqual(peer_report.summary([5.0, 1.0, 3.0]), {"p50": 3.0, "p10": 1.4})
        self.assertEqual(peer_report.summary([7.0]), {"p50": 7.0, "p10": 7.0})
        self.assertAlmostEqual(peer_report.summary(range(101))["p10"], 10.0)

    def test_ratio_is_taken_round_by_round(self):
        # A machine that slows down threefold in one round does not change who is faster, and by how much.
        self.assertEqual(peer_report.ratio([2.0, 6.0, 2.0], [1.0, 3.0, 1.0]), 2.0)
        with self.assertRaises(ValueError):
            peer_report.ratio([1.0], [1.0, 2.0])

    def test_base_is_of_the_same_type_without_table_else_f32(self):
        self.assertEqual(peer_report.base_of(ROWS[4], ROWS, "text")["key"], "xsr f32")
        int8 = row("xsr int8", "xsr", "int8", 0.85, 0.3, 0.3)
        self.assertEqual(peer_report.base_of(ROWS[4], [*ROWS, int8], "text")["key"], "xsr int8")
        self.assertIsNone(peer_report.base_of(ROWS[4], ROWS, "latency"))

    def test_a_peer_that_wins_is_shown(self):
        self.assertEqual(peer_report.wins(ROWS), [("quick <worse>", "text", 0.8)])
        text = peer_report.markdown(report(ROWS))
        self.assertIn("**1,250 (0.80×)**", text)
        self.assertIn("| 500 (2.00×) |", text)
        self.assertIn("Peers that win: quick <worse> (text, 0.80×).", text)
        self.assertIn("- x-bf16: no bf16", text)
        self.assertIn("Peers that win: none.", peer_report.markdown(report(ROWS[:4])))

    def test_headline_counts_only_peers_of_equal_quality(self):
        (line,) = peer_report.headlines([ROWS[0], *ROWS[2:]])
        self.assertEqual(line, "xsr f32: 5.00× slow, 2.00× the fastest peer at equal P@1 (near)")

    def test_every_line_of_the_table_has_as_many_cells(self):
        table = [line for line in peer_report.markdown(report(ROWS)).splitlines() if line.startswith("|")]
        self.assertEqual(len(table), 2 + len(ROWS))
        self.assertEqual({line.count("|") for line in table}, {9})

    def test_labels_keep_their_distance_and_stay_inside(self):
        places = peer_report.spread([10, 11, 12, 99, 100], 10, 0, 100)
        self.assertTrue(all(b - a >= 10 for a, b in zip(places, places[1:])), places)
        self.assertLessEqual(places[-1], 100)
        self.assertEqual(peer_report.spread([5, 50], 10, 0, 100), [5, 50])

    def test_plot_is_xml_with_a_mark_a_form_faster_ones_higher(self):
        root = ElementTree.fromstring(peer_report.svg(report(ROWS), "text"))
        name = "{http://www.w3.org/2000/svg}"
        marks = root.findall(name + "circle")
        self.assertEqual(len(marks) + len(root.findall(name + "polygon")), len(ROWS))
        heights = [float(m.get("cy")) for m in marks]  # drawn in order of speed
        self.assertEqual(heights, sorted(heights))
        self.assertEqual(marks[0].get("cx"), marks[1].get("cx"))  # of equal quality
        texts = [t.text for t in root.findall(name + "text")]
        self.assertTrue(any(t.startswith("quick <worse>") for t in texts))
        with self.assertRaises(ValueError):
            peer_report.svg(report([]), "text")


class CommandLine(unittest.TestCase):
    def test_what_cannot_run_is_told_before_anything_does(self):
        for arguments, words in (
            (["--races", "latency,corpus"], "no race is named corpus"),
            (["--races", "latency", "--svg", "x.svg"], "other than latency"),
            (["--text", "/nowhere/text"], "not found: /nowhere/text"),
            (["--build", "/nowhere"], "not found: /nowhere/runtime/libxsr.so"),
        ):
            told = io.StringIO()
            with self.assertRaises(SystemExit) as end, contextlib.redirect_stderr(told):
                bench_peers.parse(arguments)
            self.assertEqual(end.exception.code, 2)
            self.assertIn(words, told.getvalue())


class CpuModel(unittest.TestCase):
    def test_generations_of_one_name_are_told_apart(self):
        zen = ["cpu family\t: 25\n", "model\t\t: 1\n", "model name\t: AMD EPYC\n", "\n", "cpu family\t: 26\n"]
        self.assertEqual(peer_files.cpu_model_of(zen), "AMD EPYC (family 25, model 1)")
        self.assertEqual(peer_files.cpu_model_of(["model name\t: A: B\n"]), "A: B")
        self.assertEqual(peer_files.cpu_model_of([]), "unknown")


if __name__ == "__main__":
    unittest.main()
