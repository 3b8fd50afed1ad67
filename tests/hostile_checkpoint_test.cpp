// Broken and hostile checkpoints: each is refused with its own status and message, and nothing else
// happens. Run under ASan and UBSan this also shows that no byte outside the file is touched.
#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "converter/checkpoint.h"
#include "converter/pickle.h"
#include "tests/support/checkpoint_builder.h"

namespace xsr {
namespace {

using namespace test;

struct Broken {
  std::string what, file;
  xsr_status status;
  std::string fragment;  // of the message
};

constexpr xsr_status kBad = XSR_STATUS_BAD_FILE, kUnsupported = XSR_STATUS_UNSUPPORTED;

/// Every file is refused as the table says, and no two with the same message.
void check(const std::vector<Broken>& table) {
  std::set<std::string> messages;
  for (const Broken& b : table) {
    SCOPED_TRACE(b.what);
    try {
      Checkpoint::open_memory(as_span(b.file), "hostile");
      ADD_FAILURE() << "the file was accepted, expected: " << b.fragment;
    } catch (const Error& e) {
      EXPECT_EQ(e.status(), b.status) << e.what();
      EXPECT_NE(std::string(e.what()).find(b.fragment), std::string::npos)
          << "message: " << e.what() << "\nexpected: " << b.fragment;
      EXPECT_TRUE(std::string(e.what()).starts_with("hostile: ")) << e.what();
      EXPECT_TRUE(messages.insert(e.what()).second)
          << "the message is that of another case: " << e.what();
    }
  }
}

std::string f32(size_t n) { return bytes_of(std::vector<float>(n, 1.5f)); }

// ---- safetensors ----

// A string rather than a literal before "+": GCC 12 sees an overlap in inserting at the front (GCC
// bug 105651).

std::string tensor_json(const std::string& name, const std::string& body) {
  return "\"" + name + "\":{" + body + "}";
}

std::vector<Broken> safetensors_table() {
  const std::string good = tensor_json("a", R"("dtype":"F32","shape":[2],"data_offsets":[0,8])");
  const auto one = [](const std::string& body, size_t data = 8) {
    return safetensors_file("{" + tensor_json("a", body) + "}", std::string(data, '\0'));
  };
  const auto raw = [](const std::string& json, size_t data = 8) {
    return safetensors_file(json, std::string(data, '\0'));
  };
  std::string deep;
  for (int i = 0; i < 20000; ++i) deep += "[";
  std::string many;
  for (int i = 0; i <= 1 << 18; ++i) {
    many += "\"" + std::to_string(i) + R"(":{"dtype":"I8","shape":[0],"data_offsets":[0,0]},)";
  }
  std::string deep_objects;
  for (int i = 0; i < 5000; ++i) deep_objects += "{\"a\":";
  return {
      {"empty file", "", kBad, "the file is empty"},
      {"three bytes", "abc", kBad, "begins with bytes 61 62 63"},
      {"length only", bytes_of<uint64_t>(2), kBad, "begins with bytes 02 00"},
      {"no magic at all", std::string(64, 'x'), kBad, "expected a safetensors header"},
      {"header longer than the file", bytes_of<uint64_t>(1000) + "{}", kBad, "only 2 follow"},
      {"header of 2^60 bytes", bytes_of<uint64_t>(1ull << 60) + "{}", kBad,
       "header length is 1152921504606846976 bytes"},
      {"header of 2^64-1 bytes", bytes_of<uint64_t>(~0ull) + "{}", kBad,
       "header length is 18446744073709551615 bytes"},
      {"header ends in the middle", raw("{" + good), kBad, "no valid JSON"},
      {"header is an array", raw("{[]}"), kBad, "near"},
      {"rubbish after the object", raw("{" + good + "} x"), kBad, "near \"8]}} x\""},
      {"nested arrays", raw("{\"a\":" + deep), kBad,
       "a is an array, expected an object for every tensor"},
      {"nested arrays in a shape", one(R"("dtype":"F32","data_offsets":[0,8],"shape":)" + deep),
       kBad, "a: shape is an array"},
      {"nested objects", raw(deep_objects), kBad, "a has the field \"a\""},
      {"tensor is a number", raw("{\"a\":1}"), kBad, "a is the number 1, expected an object"},
      {"tensor is a string", raw("{\"a\":\"x\"}"), kBad,
       "a is the string \"x\", expected an object"},
      {"tensor is null", raw("{\"a\":null}"), kBad, "a is null"},
      {"tensor is true", raw("{\"a\":true}"), kBad, "a is a boolean"},
      {"invalid UTF-8", raw("{\"\xff\xfe\":{}}"), kBad, "no valid JSON at byte 10 of"},
      {"name twice", raw("{" + good + "," + good + "}"), kBad, "a occurs twice"},
      {"empty name",
       raw("{" + tensor_json("", R"("dtype":"F32","shape":[2],"data_offsets":[0,8])") + "}"), kBad,
       "empty name"},
      {"NUL in a name", raw("{" + tensor_json("a\\u0000b", "") + "}"), kBad, "NUL"},
      {"escape in a name",
       raw("{" + tensor_json("a\\u001b[2J", R"("dtype":"F32","shape":[2],"data_offsets":[0,8])") +
           "}"),
       kBad, "control character 0x1b"},
      {"unknown field", one(R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1)"), kBad,
       "the field \"x\""},
      {"dtype twice", one(R"("dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8])"), kBad,
       "has dtype twice"},
      {"shape twice", one(R"("dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8])"), kBad,
       "has shape twice"},
      {"offsets twice",
       one(R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"data_offsets":[0,8])"), kBad,
       "has data_offsets twice"},
      {"no dtype", one(R"("shape":[2],"data_offsets":[0,8])"), kBad, "has no dtype"},
      {"no shape", one(R"("dtype":"F32","data_offsets":[0,8])"), kBad, "has no shape"},
      {"no offsets", one(R"("dtype":"F32","shape":[2])"), kBad, "has no data_offsets"},
      {"unknown dtype", one(R"("dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8])"), kUnsupported,
       "dtype is F8_E4M3"},
      {"dtype in lower case", one(R"("dtype":"f32","shape":[2],"data_offsets":[0,8])"),
       kUnsupported, "dtype is f32"},
      {"dtype is a number", one(R"("dtype":32,"shape":[2],"data_offsets":[0,8])"), kBad,
       "a: dtype is the number 32"},
      {"dtype is an array", one(R"("dtype":["F32"],"shape":[2],"data_offsets":[0,8])"), kBad,
       "a: dtype is an array"},
      {"shape is a number", one(R"("dtype":"F32","shape":2,"data_offsets":[0,8])"), kBad,
       "a: shape is the number 2"},
      {"shape is a string", one(R"("dtype":"F32","shape":"2","data_offsets":[0,8])"), kBad,
       "a: shape is the string"},
      {"shape is an object", one(R"("dtype":"F32","shape":{},"data_offsets":[0,8])"), kBad,
       "a: shape is an object"},
      {"negative dimension", one(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"), kBad,
       "the negative number -2"},
      {"fractional dimension", one(R"("dtype":"F32","shape":[2.5],"data_offsets":[0,8])"), kBad,
       "the number 2.5"},
      {"dimension beyond 64 bits",
       one(R"("dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,8])"), kBad,
       "the number 99999999999999999999"},
      {"text in a shape", one(R"("dtype":"F32","shape":["2"],"data_offsets":[0,8])"), kBad,
       "a: shape is the string \"2\", expected whole"},
      {"nine dimensions", one(R"("dtype":"F32","shape":[2,1,1,1,1,1,1,1,1],"data_offsets":[0,8])"),
       kBad, "more than 8 numbers"},
      {"product of 2^120",
       one(R"("dtype":"F32","shape":[1152921504606846976,1152921504606846976],"data_offsets":[0,8])"),
       kBad, "overflows 64 bits"},
      {"bytes of 2^64",
       one(R"("dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0])", 0), kBad,
       "[2305843009213693952] overflows"},
      {"2^60 elements", one(R"("dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,8])"),
       kBad, "needs 4611686018427387904"},
      {"offsets backwards", one(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"), kBad,
       "run backwards"},
      {"offsets beyond the data", one(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])", 7), kBad,
       "beyond the 7 bytes of data"},
      {"offset of 2^64-1",
       one(R"("dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615])"), kBad,
       "[0, 18446744073709551615] reach beyond"},
      {"too few bytes", one(R"("dtype":"F32","shape":[2],"data_offsets":[0,7])"), kBad,
       "are 7 bytes"},
      {"too many bytes", one(R"("dtype":"F16","shape":[2],"data_offsets":[0,8])"), kBad,
       "F16 [2] needs 4"},
      {"one offset", one(R"("dtype":"F32","shape":[2],"data_offsets":[0])"), kBad, "has 1 numbers"},
      {"three offsets", one(R"("dtype":"F32","shape":[2],"data_offsets":[0,8,8])"), kBad,
       "has 3 numbers"},
      {"hole before the first tensor",
       one(R"("dtype":"F32","shape":[2],"data_offsets":[4,12])", 12), kBad, "a hole of 4 bytes"},
      {"bytes after the last tensor", one(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])", 9),
       kBad, "1 bytes follow the last tensor"},
      {"overlap",
       raw("{" + good + "," +
               tensor_json("b", R"("dtype":"F32","shape":[2],"data_offsets":[4,12])") + "}",
           12),
       kBad, "b: its data overlaps"},
      {"same bytes twice",
       raw("{" + good + "," +
           tensor_json("c", R"("dtype":"F32","shape":[2],"data_offsets":[0,8])") + "}"),
       kBad, "overlaps the tensor before it at byte 0"},
      {"hole between tensors",
       raw("{" + good + "," +
               tensor_json("b", R"("dtype":"F32","shape":[1],"data_offsets":[12,16])") + "}",
           16),
       kBad, "b: there is a hole of 4 bytes"},
      {"262145 tensors", raw("{" + many + "}"), kBad, "has more than 262144 tensors"},
      {"metadata is an array", raw(R"({"__metadata__":[]})"), kBad, "__metadata__ is an array"},
      {"metadata holds a number", raw(R"({"__metadata__":{"a":1}})"), kBad,
       "__metadata__ a is the number 1"},
      {"metadata holds an object", raw(R"({"__metadata__":{"a":{}}})"), kBad,
       "__metadata__ a is an object"},
      {"metadata key twice", raw(R"({"__metadata__":{"a":"1","a":"2"}})"), kBad,
       "__metadata__ has a twice"},
      {"metadata twice", raw(R"({"__metadata__":{},"__metadata__":{}})"), kBad,
       "__metadata__ occurs twice"},
  };
}

// ---- pickle ----

/// A checkpoint whose value under "w" is what body leaves on the stack.
std::string in_dict(const std::function<void(Pickle&)>& body) {
  Pickle p;
  p.dict().mark().string("w");
  body(p);
  return p.set_items().stop().str();
}

std::string zip_with(const std::string& pickle) { return torch_zip(pickle, {{"0", f32(6)}}); }

/// _rebuild_tensor_v2 with arguments of the case's own.
std::string rebuild(const std::function<void(Pickle&)>& arguments) {
  return zip_with(in_dict([&](Pickle& p) {
    p.global("torch._utils", "_rebuild_tensor_v2").mark();
    arguments(p);
    p.tuple().reduce();
  }));
}

std::string tensor_of(int64_t numel, int64_t offset, const std::vector<int64_t>& shape,
                      const std::vector<int64_t>& strides) {
  return zip_with(
      in_dict([&](Pickle& p) { p.tensor("FloatStorage", "0", numel, offset, shape, strides); }));
}

std::string persistent(const std::function<void(Pickle&)>& id) {
  return rebuild([&](Pickle& p) {
    id(p);
    p.raw("Q").integer(0).integers({2}).integers({1}).boolean(false).none();
  });
}

std::vector<Broken> pickle_table() {
  const auto raw = [](const std::string& body) { return zip_with(Pickle().raw(body).str()); };
  const auto call = [](const std::string& module, const std::string& name,
                       const std::string& argument) {
    return zip_with(Pickle().global(module, name).string(argument).op(0x85).reduce().stop().str());
  };
  std::vector<Broken> table = {
      // Code that a real unpickler would run.
      {"os.system", call("os", "system", "touch /tmp/owned"), kUnsupported, "asks for os.system"},
      {"posix.system", call("posix", "system", "id"), kUnsupported, "asks for posix.system"},
      {"nt.system", call("nt", "system", "calc"), kUnsupported, "asks for nt.system"},
      {"builtins.eval", call("builtins", "eval", "1"), kUnsupported, "asks for builtins.eval"},
      {"__builtin__.eval", call("__builtin__", "eval", "1"), kUnsupported,
       "asks for __builtin__.eval"},
      {"builtins.exec", call("builtins", "exec", "1"), kUnsupported, "asks for builtins.exec"},
      {"builtins.getattr", call("builtins", "getattr", "x"), kUnsupported,
       "asks for builtins.getattr"},
      {"builtins.__import__", call("builtins", "__import__", "os"), kUnsupported,
       "asks for builtins.__import__"},
      {"subprocess.Popen", call("subprocess", "Popen", "id"), kUnsupported,
       "asks for subprocess.Popen"},
      {"torch.load", call("torch", "load", "x"), kUnsupported, "asks for torch.load"},
      {"torch.hub.load", call("torch.hub", "load", "x"), kUnsupported, "asks for torch.hub.load"},
      {"numpy scalar", call("numpy.core.multiarray", "scalar", "x"), kUnsupported,
       "asks for numpy.core.multiarray.scalar"},
      {"copyreg", call("copyreg", "_reconstructor", "x"), kUnsupported,
       "asks for copyreg._reconstructor"},
      {"argparse.Namespace", call("argparse", "Namespace", "x"), kUnsupported,
       "asks for argparse.Namespace"},
      {"pickle of a module", call("torch.nn.modules.linear", "Linear", "x"), kUnsupported,
       "asks for torch.nn.modules.linear.Linear"},
      {"a dotted name", call("collections", "OrderedDict.fromkeys", "x"), kUnsupported,
       "asks for collections.OrderedDict.fromkeys"},
      {"a space in the module", call("collections OrderedDict", "", "x"), kUnsupported,
       "asks for collections OrderedDict."},
      {"control characters in a global", call("o\x1b[31ms", "system", "x"), kUnsupported,
       "asks for o?[31ms.system"},
      {"STACK_GLOBAL", zip_with(Pickle(4).string("os").string("popen").op(0x93).stop().str()),
       kUnsupported, "asks for os.popen"},
      {"STACK_GLOBAL of a number", zip_with(Pickle(4).integer(1).string("x").op(0x93).stop().str()),
       kBad, "the module of STACK_GLOBAL is a number"},
      {"REDUCE on a dtype",
       zip_with(Pickle().global("torch", "float32").raw(")").reduce().stop().str()), kUnsupported,
       "REDUCE calls torch float32, which is data"},
      {"REDUCE on a storage type",
       zip_with(Pickle().global("torch", "FloatStorage").raw(")").reduce().stop().str()),
       kUnsupported, "REDUCE calls torch FloatStorage, which is data"},
      {"REDUCE on a string", zip_with(Pickle().string("x").raw(")").reduce().stop().str()), kBad,
       "what REDUCE calls is a string"},
      {"REDUCE without a tuple",
       zip_with(Pickle().global("torch", "Size").string("x").reduce().stop().str()), kBad,
       "the arguments of REDUCE is a string"},
      {"BUILD sets an attribute",
       zip_with(Pickle()
                    .global("collections", "OrderedDict")
                    .raw(")")
                    .reduce()
                    .dict()
                    .mark()
                    .string("__class__")
                    .none()
                    .set_items()
                    .raw("b")
                    .stop()
                    .str()),
       kUnsupported, "the attribute __class__"},
      {"BUILD with a tuple", zip_with(Pickle().dict().raw(")b").stop().str()), kBad,
       "the state that BUILD gives is a tuple"},
      {"BUILD on a list", zip_with(Pickle().list().dict().raw("b").stop().str()), kBad,
       "what BUILD gives a state to is a list"},
      // Structure.
      {"empty pickle", zip_with(""), kBad, "byte 0: the pickle ends without STOP"},
      {"no STOP", raw("}"), kBad, "byte 3: the pickle ends without STOP"},
      {"protocol 0", zip_with(Pickle(0).dict().stop().str()), kUnsupported, "protocol is 0"},
      {"protocol 6", zip_with(Pickle(6).dict().stop().str()), kUnsupported, "protocol is 6"},
      {"STOP on an empty stack", raw("."), kBad, "STOP finds 0 values"},
      {"STOP with two values", raw("}}."), kBad, "STOP finds 2 values and 0 marks"},
      {"STOP with a mark", raw("}(."), kBad, "STOP finds 1 values and 1 marks"},
      {"bytes after STOP", raw("}.}"), kBad, "1 bytes follow the pickle's STOP"},
      {"SETITEMS without MARK", raw("}u."), kBad, "SETITEMS finds no MARK"},
      {"APPENDS without MARK", raw("]e."), kBad, "APPENDS finds no MARK"},
      {"TUPLE without MARK", raw("t."), kBad, "TUPLE finds no MARK"},
      {"SETITEM on an empty stack", raw("s."), kBad, "SETITEM finds the stack empty"},
      {"APPEND on an empty stack", raw("a."), kBad, "APPEND finds the stack empty"},
      {"TUPLE3 of two", raw("NN\x87."), kBad, "TUPLE3 finds the stack empty"},
      {"REDUCE on an empty stack", raw("R."), kBad, "REDUCE finds the stack empty"},
      {"BINPERSID on an empty stack", raw("Q."), kBad, "BINPERSID finds the stack empty"},
      {"pop through a mark", raw("}N(a."), kBad, "byte 5: APPEND finds the stack empty"},
      {"tuple through a mark", raw("N(\x85t."), kBad, "byte 4: TUPLE1 finds the stack empty"},
      {"odd SETITEMS", raw("}(Nu."), kBad, "a key without a value"},
      {"SETITEMS on a list", raw("](NNu."), kBad, "what is assigned to is a list"},
      {"APPENDS on a dict", raw("}(Ne."), kBad, "what is appended to is a dictionary"},
      {"a list as a key", raw("}(]Nu."), kBad, "a dictionary key is a list"},
      {"BINPUT on an empty stack", raw(std::string("q\0.", 3)), kBad,
       "BINPUT finds the stack empty"},
      {"memo never set", raw("h\x07."), kBad, "memo entry 7 was never set"},
      {"memo never set below one that was", raw("Nq\x07h\x06."), kBad,
       "memo entry 6 was never set"},
      {"long memo never set", raw("j\xff\xff\xff\x7f."), kBad,
       "memo entry 2147483647 was never set"},
      {"memo bomb", raw("}r\xff\xff\xff\xff."), kBad, "memo entry 4294967295 is beyond the limit"},
      {"string beyond the pickle", raw("X\xff\xff\xff\xff."), kBad,
       "BINUNICODE needs 4294967295 bytes"},
      {"string of 2^60 bytes", raw(std::string("\x8d\0\0\0\0\0\0\0\x10.", 10)), kBad,
       "BINUNICODE8 needs 1152921504606846976 bytes"},
      {"bytes beyond the pickle", raw("B\x10\0\0\0x"), kBad, "needs"},
      {"frame beyond the pickle", raw(std::string("\x95\xff\0\0\0\0\0\0\0.", 10)), kBad,
       "FRAME is 255 bytes"},
      {"number cut off", raw("J\x01"), kBad, "BININT needs 4 bytes"},
      {"float cut off", raw("G\x01"), kBad, "BINFLOAT needs 8 bytes"},
      {"long cut off", raw("\x8a\x09\x01"), kBad, "LONG1 needs 9 bytes"},
      {"global cut off", raw("ccollections"), kBad, "the module of GLOBAL has no end of line"},
      {"global's name cut off", raw("ccollections\nOrdered"), kBad,
       "the name of GLOBAL has no end of line"},
      {"no opcode", raw("\xff."), kBad, "0xff is no pickle opcode"},
      {"marks without end", raw(std::string(10000, '(')), kBad,
       "MARKs are nested more than 256 deep"},
      {"values without end", raw(std::string(2'000'000, 'N')), kBad, "the stack is more than"},
      {"lists without end", raw(std::string(2'000'000, ']')), kBad, "the pickle has more than"},
      {"lists in lists in lists", zip_with(in_dict([](Pickle& p) {
         p.raw(std::string(200'000, ']') + std::string(199'999, 'a'));
       })),
       kBad, "containers are nested more than 16 deep"},
      {"a pickle of a number", raw("K\x01."), kBad, "the pickle holds a number"},
      {"a pickle of a list", raw("]."), kBad, "the pickle holds a list"},
      {"a pickle of None", raw("N."), kBad, "the pickle holds None"},
      {"no tensors", raw("}."), kBad, "holds no tensors"},
      {"an empty state_dict",
       zip_with(Pickle().dict().mark().string("state_dict").dict().set_items().stop().str()), kBad,
       "byte 19: the checkpoint holds no tensors"},
      // Tensors.
      {"rebuild without arguments", rebuild([](Pickle&) {}), kBad,
       "gets 0 arguments, expected 6 to 7"},
      {"rebuild with eight arguments", rebuild([](Pickle& p) { p.raw("NNNNNNNN"); }), kBad,
       "gets 8 arguments"},
      {"rebuild without storage", rebuild([](Pickle& p) {
         p.none().integer(0).integers({2}).integers({1}).boolean(false).none();
       }),
       kBad, "the storage of a tensor is None"},
      {"offset is a string", rebuild([](Pickle& p) {
         p.storage("FloatStorage", "0", 6)
             .string("0")
             .integers({2})
             .integers({1})
             .boolean(false)
             .none();
       }),
       kBad, "the storage offset of a tensor is a string"},
      {"shape is a list", rebuild([](Pickle& p) {
         p.storage("FloatStorage", "0", 6).integer(0).list().integers({1}).boolean(false).none();
       }),
       kBad, "the shape of a tensor is a list"},
      {"strides are None", rebuild([](Pickle& p) {
         p.storage("FloatStorage", "0", 6).integer(0).integers({2}).none().boolean(false).none();
       }),
       kBad, "the strides of a tensor is None"},
      {"dimension is a float", rebuild([](Pickle& p) {
         p.storage("FloatStorage", "0", 6)
             .integer(0)
             .real(2)
             .op(0x85)
             .integers({1})
             .boolean(false)
             .none();
       }),
       kBad, "a dimension of a tensor is a float"},
      {"dimension beyond 64 bits", rebuild([](Pickle& p) {
         p.storage("FloatStorage", "0", 6)
             .integer(0)
             .raw("\x8a\x09")
             .raw(std::string(9, 1))
             .op(0x85)
             .integers({1})
             .boolean(false)
             .none();
       }),
       kBad, "a dimension of a tensor is a number beyond 64 bits"},
      {"negative offset", tensor_of(6, -1, {2}, {1}), kBad, "the storage offset of a tensor is -1"},
      {"negative dimension", tensor_of(6, 0, {-2}, {1}), kBad, "a dimension of a tensor is -2"},
      {"negative stride", tensor_of(6, 5, {2}, {-1}), kBad, "a stride of a tensor is -1"},
      {"two dimensions, one stride", tensor_of(6, 0, {2, 3}, {1}), kBad,
       "2 dimensions and 1 strides"},
      {"nine dimensions", tensor_of(6, 0, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1}),
       kBad, "has 9 dimensions"},
      {"beyond the storage", tensor_of(6, 0, {7}, {1}), kBad,
       "[7] with strides [1] from element 0 reaches beyond"},
      {"offset beyond the storage", tensor_of(6, 5, {2}, {1}), kBad,
       "from element 5 reaches beyond"},
      {"stride beyond the storage", tensor_of(6, 0, {2, 3}, {4, 1}), kBad, "with strides [4, 1]"},
      {"strides whose sum overflows", tensor_of(8, 0, {2, 2, 2}, {INT64_MAX, INT64_MAX, 3}), kBad,
       "[2, 2, 2] with strides [9223372036854775807, 9223372036854775807, 3] from element 0"},
      {"2^60 elements", tensor_of(6, 0, {int64_t{1} << 60}, {1}), kBad,
       "[1152921504606846976] with strides [1]"},
      {"shape overflows", tensor_of(6, 0, {int64_t{1} << 40, int64_t{1} << 40}, {0, 0}), kBad,
       "its shape overflows 64 bits"},
      {"reach overflows", tensor_of(6, 0, {1 << 20, 1}, {int64_t{1} << 60, 1}), kBad,
       "with strides [1152921504606846976, 1]"},
      {"expanded tensor", tensor_of(6, 0, {1 << 20, 1 << 20}, {0, 0}), kBad, "an expanded tensor"},
      {"storage larger than its file", tensor_of(7, 0, {2}, {1}), kBad,
       "the pickle says 7 elements of F32 (28 bytes)"},
      {"storage smaller than its file", tensor_of(5, 0, {2}, {1}), kBad,
       "the pickle says 5 elements"},
      {"storage of 2^60 elements", tensor_of(int64_t{1} << 60, 0, {2}, {1}), kBad,
       "the pickle says 1152921504606846976 elements"},
      {"storage of 2^62 elements", tensor_of(int64_t{1} << 62, 0, {2}, {1}), kBad,
       "4611686018427387904 elements overflows"},
      {"negative storage", tensor_of(-6, 0, {2}, {1}), kBad, "the size of a storage is -6"},
      {"no such storage",
       zip_with(in_dict([](Pickle& p) { p.tensor("FloatStorage", "1", 6, 0, {2}, {1}); })), kBad,
       "there is no zip entry archive/data/1"},
      {"storage outside its folder",
       zip_with(in_dict([](Pickle& p) { p.tensor("FloatStorage", "../version", 6, 0, {2}, {1}); })),
       kBad, "there is no zip entry archive/data/../version"},
      {"a storage of two sizes", zip_with(in_dict([](Pickle& p) {
         p.list()
             .mark()
             .tensor("FloatStorage", "0", 6, 0, {2}, {1})
             .tensor("DoubleStorage", "0", 6, 0, {2}, {1})
             .append_items();
       })),
       kBad, "storage 0 has 48 bytes here and 24 elsewhere"},
      {"quantised storage", rebuild([](Pickle& p) { p.storage("QInt8Storage", "0", 6); }),
       kUnsupported, "asks for torch.QInt8Storage"},
      {"persistent id is a string", persistent([](Pickle& p) { p.string("storage"); }), kBad,
       "a persistent id is a string"},
      {"persistent id of four", persistent([](Pickle& p) { p.mark().raw("NNNN").tuple(); }), kBad,
       "has 4 members"},
      {"persistent id of another kind",
       persistent([](Pickle& p) { p.mark().string("module").raw("NNNN").tuple(); }), kUnsupported,
       "is of type \"module\""},
      {"storage of no type",
       persistent([](Pickle& p) { p.mark().string("storage").raw("NNNN").tuple(); }), kBad,
       "the type of a storage is None"},
      {"storage of a function's type", persistent([](Pickle& p) {
         p.mark().string("storage").global("torch", "Size").raw("NNN").tuple();
       }),
       kBad, "the type of a storage is torch Size"},
      {"storage key is a number", persistent([](Pickle& p) {
         p.mark().string("storage").global("torch", "FloatStorage").integer(0).raw("NN").tuple();
       }),
       kBad, "the key of a storage is a number"},
      {"view of a storage", persistent([](Pickle& p) {
         p.mark()
             .string("storage")
             .global("torch", "FloatStorage")
             .string("0")
             .string("cpu")
             .integer(6)
             .integers({0, 1})
             .tuple();
       }),
       kUnsupported, "a view of another one"},
      {"parameter of nothing", zip_with(in_dict([](Pickle& p) {
         p.global("torch._utils", "_rebuild_parameter")
             .mark()
             .none()
             .boolean(true)
             .none()
             .tuple()
             .reduce();
       })),
       kBad, "the data of a parameter is None"},
      {"OrderedDict of a tuple", zip_with(in_dict([](Pickle& p) {
         p.global("collections", "OrderedDict").raw(")\x85").reduce();
       })),
       kBad, "the argument of OrderedDict is a tuple"},
      {"OrderedDict of numbers", zip_with(in_dict([](Pickle& p) {
         p.global("collections", "OrderedDict").list().integer(1).raw("a\x85").reduce();
       })),
       kBad, "no pair of key and value"},
      {"torch.Size of a number",
       zip_with(in_dict([](Pickle& p) { p.global("torch", "Size").raw("K\x01\x85").reduce(); })),
       kBad, "the argument of torch.Size is a number"},
      {"tensor name twice",
       zip_with(Pickle()
                    .dict()
                    .mark()
                    .string("w")
                    .tensor("FloatStorage", "0", 6, 0, {2}, {1})
                    .string("w")
                    .tensor("FloatStorage", "0", 6, 2, {2}, {1})
                    .set_items()
                    .stop()
                    .str()),
       kBad, "the tensor w occurs twice"},
  };
  // A hundred million laughs: each list holds the one before ten times, so that a walk would take
  // 10^8 steps.
  {
    Pickle p;
    p.dict().mark().string("w").mark().list().raw(std::string("q\0", 2));
    for (int level = 1; level <= 8; ++level) {
      p.raw("]q").op(static_cast<unsigned char>(level)).mark();
      for (int i = 0; i < 10; ++i) p.raw("h").op(static_cast<unsigned char>(level - 1));
      p.append_items();
    }
    table.push_back({"a hundred million laughs", zip_with(p.tuple().set_items().stop().str()), kBad,
                     "has more than 1048576 members"});
  }
  // A tensor a hundred thousand times, each under a long name.
  {
    Pickle p;
    p.dict().mark().string(std::string(4000, 'w'));
    p.mark().tensor("FloatStorage", "0", 6, 0, {2}, {1}).raw(std::string("q\0", 2));
    for (int level = 1; level <= 5; ++level) {
      p.raw("]q").op(static_cast<unsigned char>(level)).mark();
      for (int i = 0; i < 10; ++i) p.raw("h").op(static_cast<unsigned char>(level - 1));
      p.append_items();
    }
    table.push_back({"long names without end", zip_with(p.tuple().set_items().stop().str()), kBad,
                     "the names of its tensors have more than 67108864 bytes together"});
  }
  // A list that holds itself.
  table.push_back({"a circle",
                   zip_with(in_dict([](Pickle& p) { p.list().raw(std::string("q\0h\0a", 5)); })),
                   kBad, "byte 10: containers are nested"});
  // More members than the limit, a byte each.
  {
    Pickle p;
    p.list().mark().raw(std::string(60'000, 'N')).append_items();
    for (int i = 0; i < 80; ++i) p.mark().raw(std::string(60'000, 'N')).append_items();
    table.push_back(
        {"members without end", zip_with(p.stop().str()), kBad, "the containers have more than"});
  }
  return table;
}

/// Every opcode that is not on the list of allowed ones is refused by its name.
std::vector<Broken> opcode_table() {
  const std::pair<unsigned char, const char*> forbidden[] = {
      {'0', "POP"},        {'1', "POP_MARK"},    {'2', "DUP"},          {'F', "FLOAT"},
      {'I', "INT"},        {'L', "LONG"},        {'P', "PERSID"},       {'S', "STRING"},
      {'V', "UNICODE"},    {'d', "DICT"},        {'g', "GET"},          {'i', "INST"},
      {'l', "LIST"},       {'o', "OBJ"},         {'p', "PUT"},          {0x81, "NEWOBJ"},
      {0x82, "EXT1"},      {0x83, "EXT2"},       {0x84, "EXT4"},        {0x8b, "LONG4"},
      {0x8e, "BINBYTES8"}, {0x8f, "EMPTY_SET"},  {0x90, "ADDITEMS"},    {0x91, "FROZENSET"},
      {0x92, "NEWOBJ_EX"}, {0x96, "BYTEARRAY8"}, {0x97, "NEXT_BUFFER"}, {0x98, "READONLY_BUFFER"},
  };
  std::vector<Broken> table;
  for (const auto& [opcode, name] : forbidden) {
    table.push_back({std::string("opcode ") + name,
                     zip_with(Pickle().raw("(").op(opcode).stop().str()), kUnsupported,
                     std::string("byte 3: the opcode ") + name + " is none"});
  }
  return table;
}

// ---- zip ----

std::vector<ZipEntry> good_entries() {
  const std::string pickle = in_dict([](Pickle& p) {
    p.tensor("FloatStorage", "0", 6, 0, {2, 3}, {3, 1});
  });
  std::vector<ZipEntry> entries(3);
  entries[0].name = "archive/data.pkl";
  entries[0].data = pickle;
  entries[1].name = "archive/data/0";
  entries[1].data = f32(6);
  entries[2].name = "archive/version";
  entries[2].data = "3\n";
  return entries;
}

std::vector<Broken> zip_table() {
  const auto with = [](const std::function<void(std::vector<ZipEntry>&)>& change) {
    auto entries = good_entries();
    change(entries);
    return zip_file(entries);
  };
  const auto say = [&](size_t entry, const char* field, uint64_t value) {
    return with([&](auto& e) { e[entry].say[field] = value; });
  };
  const auto end = [](const char* field, uint64_t value, bool zip64 = false) {
    ZipSay s;
    s.zip64 = zip64;
    s.end[field] = value;
    return zip_file(good_entries(), s);
  };
  const auto around = [](const std::string& before, const std::string& between,
                         const std::string& after) {
    ZipSay s;
    s.before = before;
    s.between = between;
    s.after = after;
    return zip_file(good_entries(), s);
  };
  const auto rename = [&](size_t entry, const std::string& name) {
    return with([&](auto& e) { e[entry].name = name; });
  };
  // Storages and a pickle that a real deflate makes tiny.
  const size_t large = 64 << 20;
  const std::string zeros(large, '\0');
  const auto bomb = with([&](auto& e) {
    e[0].data = in_dict([&](Pickle& p) {
      p.tensor("FloatStorage", "0", static_cast<int64_t>(large / 4), 0, {2, 3}, {3, 1});
    });
    e[1].data = zeros;
    e[1].deflate = true;
  });
  const auto pickle_bomb = with([&](auto& e) {
    e[0].data = std::string(8 << 20, 'N');
    e[0].deflate = true;
  });
  const auto many = with([](auto& e) {
    for (int i = 1; i <= 64; ++i) {
      ZipEntry small;
      small.name = "archive/data/" + std::to_string(i);
      small.data = std::string(1 << 20, '\0');
      small.deflate = true;
      e.push_back(small);
    }
  });
  // Says it is 24 bytes and inflates to 64 MiB: the reader stops at 25.
  const auto liar = with([&](auto& e) {
    e[1].data = zeros;
    e[1].deflate = true;
    e[1].say["size"] = 24;
  });
  const auto zip64_say = [&](const char* field, uint64_t value) {
    return with([&](auto& e) {
      e[1].zip64 = true;
      e[1].say[field] = value;
    });
  };
  std::string no_zip64_field = with([](auto& e) { e[1].zip64 = true; });
  no_zip64_field[no_zip64_field.rfind(std::string("\x01\0\x18\0", 4))] = 9;
  return {
      {"only a local header", "PK\x03\x04", kBad, "the zip archive has no end record: truncated"},
      {"end record only", zip_file({}), kBad, "archive of 0 entries has no NAME/data.pkl"},
      {"cut before the end record", zip_file(good_entries()).substr(0, 200), kBad,
       "no end record at the end of the file"},
      {"bytes after the archive", around("", "", "x"), kBad, "a comment of 0 bytes, but 1 follow"},
      {"comment longer than the file", end("comment", 1), kBad,
       "a comment of 1 bytes, but 0 follow"},
      {"bytes before the archive", around("PK\x03\x04junk", "", ""), kBad,
       "8 bytes stand before the first zip entry"},
      {"bytes after the directory", around("", "junk", ""), kBad, "must end at byte"},
      {"directory on disk 1", end("disk", 1), kUnsupported, "spans several disks"},
      {"directory size", end("size", 7), kBad, "is said to be 7 bytes"},
      {"directory offset", end("offset", 7), kBad, "at byte 7, but must end"},
      {"directory offset beyond the file", end("offset", 0xfffffff0), kBad, "at byte 4294967280"},
      {"65535 entries", end("count", 65535), kBad, "is said to have 65535 entries"},
      {"two entries of three", end("count", 2), kBad, "follow the last zip directory entry"},
      {"2^60 entries", end("count", 1ull << 60, true), kBad,
       "is said to have 1152921504606846976 entries"},
      {"zip64 directory of 2^60 bytes", end("size", 1ull << 60, true), kBad,
       "is said to be 1152921504606846976 bytes"},
      {"zip64 directory at 2^60", end("offset", 1ull << 60, true), kBad,
       "at byte 1152921504606846976, but"},
      {"zip64 locator astray", end("end64", 3, true), kBad, "the zip64 locator points to byte 3"},
      {"zip64 locator at 2^64-1", end("end64", ~0ull, true), kBad,
       "points to byte 18446744073709551615"},
      {"zip64 record too long", end("record64", 1000, true), kBad, "says it is 1000 bytes"},
      {"zip64 on two disks", end("disks64", 2, true), kUnsupported, "spans 2 disks"},
      {"directory entry beyond the directory", say(2, "comment", 0xffff), kBad,
       "zip directory entry 3 at byte "},
      {"encrypted", say(1, "flags", 0x801), kUnsupported, "archive/data/0 is encrypted"},
      {"strongly encrypted", say(0, "flags", 0x840), kUnsupported, "archive/data.pkl is encrypted"},
      {"patch data", say(1, "flags", 0x820), kUnsupported, "is patch data"},
      {"bzip2", say(1, "method", 12), kUnsupported, "uses compression method 12"},
      {"lzma", say(0, "method", 14), kUnsupported, "archive/data.pkl uses compression method 14"},
      {"method differs", say(1, "local_method", 8), kBad,
       "has compression method 8 in its local header, 0"},
      {"stored with two sizes", say(1, "size", 25), kBad, "24 bytes in the file and 25 outside"},
      {"entry beyond the directory",
       with([](auto& e) { e[1].say["size"] = e[1].say["compressed"] = 0x7fffffff; }), kBad,
       "which reach into the directory"},
      {"entry runs into the next",
       with([](auto& e) { e[0].say["size"] = e[0].say["compressed"] = e[0].data.size() + 1; }),
       kBad, "two zip entries overlap"},
      {"two entries share their bytes", with([](auto& e) {
         e[2].name = "archive/data/1";
         e[2].local_name = "archive/data/0";
         e[2].say["offset"] = 46 + e[0].data.size();
       }),
       kBad, "has another name in its local header"},
      {"offset beyond the file", say(1, "offset", 0xfffffff0), kBad, "points to byte 4294967280"},
      {"offset into nowhere", say(1, "offset", 1), kBad,
       "points to byte 1, where there is no local header"},
      {"offset of 2^60", zip64_say("offset", 1ull << 60), kBad,
       "points to byte 1152921504606846976"},
      {"size of 2^60", zip64_say("size", 1ull << 60), kBad, "and 1152921504606846976 outside"},
      {"compressed size of 2^64-1", with([](auto& e) {
         e[1].zip64 = true;
         e[1].say["size"] = e[1].say["compressed"] = ~0ull;
       }),
       kBad, "has 18446744073709551615 bytes at byte"},
      {"no zip64 field", no_zip64_field, kBad, "has sizes of zip64 but no zip64 field"},
      {"wrong CRC of a storage", say(1, "crc", 0x12345678), kBad, "archive/data/0 has CRC-32"},
      {"wrong CRC of the pickle", say(0, "crc", 0x12345678), kBad, "archive/data.pkl has CRC-32"},
      {"wrong CRC beside an empty entry, whose CRC is 0", with([](auto& e) {
         e[1].say["crc"] = 0x87654321;
         e[2].data = "";
       }),
       kBad, "archive/data/0 has CRC-32"},
      {"another name in the local header",
       with([](auto& e) { e[1].local_name = "archive/data/1"; }), kBad,
       "archive/data/0 has another name"},
      {"name twice", rename(2, "archive/data/0"), kBad, "zip entry archive/data/0 occurs twice"},
      {"no pickle", rename(0, "archive/model.pkl"), kBad,
       "archive of 3 entries has no NAME/data.pkl"},
      {"two pickles", rename(2, "other/data.pkl"), kBad,
       "both archive/data.pkl and other/data.pkl"},
      {"entry outside the folder", rename(2, "../../etc/passwd"), kBad,
       "../../etc/passwd lies outside the folder archive/"},
      {"TorchScript constants", rename(2, "archive/constants.pkl"), kUnsupported,
       "belongs to a TorchScript program"},
      {"TorchScript code", rename(2, "archive/code/m.py"), kUnsupported,
       "archive/code/m.py belongs to a TorchScript"},
      {"control character in a name", rename(2, "archive/\x1b[2J"), kBad,
       "the name of zip directory entry 3"},
      {"big-endian", with([](auto& e) {
         e[2].name = "archive/byteorder";
         e[2].data = "big";
       }),
       kUnsupported, "written on a big-endian machine"},
      {"zip bomb", bomb, kBad, "archive/data/0 inflates from"},
      {"many small zip bombs", many, kBad, "inflate to more than 32 times"},
      {"zip bomb as the pickle", pickle_bomb, kBad, "archive/data.pkl inflates from"},
      {"inflates to more than it says", liar, kBad, "does not inflate to the 24 bytes"},
      {"inflates to less than it says", with([](auto& e) {
         e[1].deflate = true;
         e[1].data = f32(5);
         e[1].say["size"] = 24;
       }),
       kBad, "(20 after 8 of 8"},
      {"damaged deflate stream", with([](auto& e) {
         e[1].say["method"] = 8;
         e[1].data = std::string(24, '\xff');
       }),
       kBad, "archive/data/0 does not inflate to the 24 bytes the directory says (0"},
      {"bytes after the deflate stream", with([](auto& e) {
         e[1].data = deflate_raw(f32(6)) + "more";
         e[1].say = {{"method", 8}, {"size", 24}};
       }),
       kBad, "archive/data/0 does not inflate to the 24 bytes the directory says (24"},
  };
}

// ---- the older container ----

std::vector<Broken> legacy_table() {
  const std::string pickle = in_dict([](Pickle& p) {
    p.tensor("FloatStorage", "7", 6, 0, {2, 3}, {3, 1}, true);
  });
  const std::string head = legacy_magic() + legacy_protocol() + legacy_system();
  const std::string storage = bytes_of<int64_t>(6) + f32(6);
  const std::string keys = legacy_keys({"7"});
  std::string tar(1024, '\0');
  tar.replace(257, 5, "ustar");
  return {
      {"a lone pickle", pickle, kBad,
       "the first pickle holds a dictionary, expected the magic number"},
      {"os.system before the magic number", Pickle().global("os", "system").stop().str(),
       kUnsupported, "byte 2: the pickle asks for os.system"},
      {"wrong magic number",
       std::string("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x1a.", 15) +
           legacy_protocol(),
       kBad, "the first pickle holds a number beyond 64 bits"},
      {"magic number alone", legacy_magic(), kBad, "byte 15: the pickle ends without STOP"},
      {"protocol 1000", legacy_magic() + "\x80\x02M\xe8\x03." + legacy_system(), kUnsupported,
       "the protocol version is 1000"},
      {"protocol is None", legacy_magic() + "\x80\x02N." + legacy_system(), kBad,
       "the protocol version is None"},
      {"system record is a list", legacy_magic() + legacy_protocol() + "\x80\x02].", kBad,
       "the system record is a list"},
      {"system record is empty", legacy_magic() + legacy_protocol() + "\x80\x02}.", kBad,
       "does not say little_endian"},
      {"big-endian", legacy_magic() + legacy_protocol() + legacy_system(false), kUnsupported,
       "little_endian is False"},
      {"no object", head, kBad, "the pickle ends without STOP"},
      {"no keys", head + pickle, kBad,
       "byte " + std::to_string(head.size() + pickle.size()) + ": the pickle ends"},
      {"keys are a dict", head + pickle + "\x80\x02}.", kBad, "the storage keys are a dictionary"},
      {"a key is a number",
       head + pickle + Pickle().list().integer(7).raw("a").stop().str() + storage, kBad,
       "a storage key is a number"},
      {"unknown key", head + pickle + legacy_keys({"8"}) + storage, kBad,
       "the storage key 8 belongs to no tensor"},
      {"key twice", head + pickle + legacy_keys({"7", "7"}) + storage + storage, kBad,
       "the storage key 7 occurs twice"},
      {"key missing", head + pickle + legacy_keys({}), kBad, "storage 7 is not in the list"},
      {"no storage", head + pickle + keys, kBad, "storage 7 has no size, only 0 bytes"},
      {"size cut off", head + pickle + keys + "1234567", kBad,
       "storage 7 has no size, only 7 bytes"},
      {"size of 2^60", head + pickle + keys + bytes_of<int64_t>(1ll << 60) + f32(6), kBad,
       "storage 7 has 1152921504606846976 elements"},
      {"negative size", head + pickle + keys + bytes_of<int64_t>(-6) + f32(6), kBad,
       "storage 7 has -6 elements"},
      {"storage cut off", head + pickle + keys + bytes_of<int64_t>(6) + f32(5), kBad,
       "storage 7 has 24 bytes, but only 20 follow"},
      {"bytes after the last storage", head + pickle + keys + storage + "x", kBad,
       "1 bytes follow the last storage"},
      {"a storage of two sizes",
       head + in_dict([](Pickle& p) {
         p.list()
             .mark()
             .tensor("FloatStorage", "7", 6, 0, {2}, {1}, true)
             .tensor("FloatStorage", "7", 5, 0, {2}, {1}, true)
             .append_items();
       }) + keys +
           storage,
       kBad, "storage 7 has 20 bytes here and 24 elsewhere"},
      {"os.system in the object", head + Pickle().global("os", "system").stop().str() + keys,
       kUnsupported, "asks for os.system, which is"},
      {"tar", tar, kUnsupported, "is a tar file"},
      {"an .xsr file", "\x89XSR\r\n\x1a\n" + std::string(100, '\0'), kUnsupported,
       "is a .xsr file, expected a checkpoint"},
  };
}

TEST(HostileCheckpoint, safetensors) { check(safetensors_table()); }
TEST(HostileCheckpoint, pickle) { check(pickle_table()); }
TEST(HostileCheckpoint, opcodes) { check(opcode_table()); }
TEST(HostileCheckpoint, zip) { check(zip_table()); }
TEST(HostileCheckpoint, legacy) { check(legacy_table()); }

TEST(HostileCheckpoint, there_are_more_than_200) {
  const size_t count = safetensors_table().size() + pickle_table().size() + opcode_table().size() +
                       zip_table().size() + legacy_table().size();
  RecordProperty("files", static_cast<int>(count));
  EXPECT_GE(count, 200u);
}

/// Sound files of each format, small enough to be broken at every byte.
std::vector<std::pair<std::string, std::string>> sound_files() {
  const std::string pickle = in_dict([](Pickle& p) {
    p.tensor("FloatStorage", "0", 6, 0, {2, 3}, {3, 1});
  });
  const std::string legacy = in_dict([](Pickle& p) {
    p.tensor("FloatStorage", "0", 6, 0, {2, 3}, {3, 1}, true);
  });
  auto entries = good_entries();
  for (auto& e : entries) e.zip64 = true;
  ZipSay zip64;
  zip64.zip64 = true;
  return {{"safetensors",
           safetensors_file({{"a", "F32", {2, 3}, f32(6)}, {"b", "I64", {}, bytes_of<int64_t>(5)}},
                            R"({"k":"v"})")},
          {"zip", torch_zip(pickle, {{"0", f32(6)}})},
          {"deflated zip", torch_zip(pickle, {{"0", f32(6)}}, true)},
          {"zip64", zip_file(entries, zip64)},
          {"legacy", torch_legacy(legacy, {{"0", f32(6), 6}})}};
}

TEST(HostileCheckpoint, sound_files_are_read) {
  for (const auto& [what, file] : sound_files()) {
    SCOPED_TRACE(what);
    const auto checkpoint = Checkpoint::open_memory(as_span(file));
    EXPECT_EQ(checkpoint->tensors()[0].shape, (std::vector<uint64_t>{2, 3}));
    EXPECT_EQ(checkpoint->tensors()[0].to_f32(), std::vector<float>(6, 1.5f));
  }
}

TEST(HostileCheckpoint, every_truncation_is_refused) {
  for (const auto& [what, file] : sound_files()) {
    for (size_t size = 0; size < file.size(); ++size) {
      // A buffer of its own, so that a read beyond the end is one beyond the allocation.
      const std::vector<unsigned char> cut(file.begin(),
                                           file.begin() + static_cast<ptrdiff_t>(size));
      EXPECT_THROW(Checkpoint::open_memory(cut), Error)
          << what << " cut to " << size << " of " << file.size() << " bytes";
    }
  }
}

TEST(HostileCheckpoint, every_changed_byte_is_refused_or_read_whole) {
  for (const auto& [what, file] : sound_files()) {
    for (size_t at = 0; at < file.size(); ++at) {
      for (const int change : {0x01, 0x80, 0xff}) {
        std::vector<unsigned char> changed(file.begin(), file.end());
        changed[at] ^= static_cast<unsigned char>(change);
        try {
          const auto checkpoint = Checkpoint::open_memory(changed);
          for (const auto& t : checkpoint->tensors()) ASSERT_EQ(t.to_f64().size(), t.numel);
        } catch (const Error& e) {
          ASSERT_TRUE(e.status() == kBad || e.status() == kUnsupported)
              << what << " byte " << at << ": " << e.what();
        }
      }
    }
  }
}

}  // namespace
}  // namespace xsr
