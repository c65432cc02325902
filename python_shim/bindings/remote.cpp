// Objects at addresses, which Python's libraries reach.

#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <tuple>
#include <utility>

#include "planner/error.h"
#include "python_shim/bindings/bindings.h"
#include "storage/files/plain_http.h"
#include "storage/files/remote_calls.h"
#include "storage/files/remote_objects.h"

namespace py = pybind11;

namespace shardwright {
namespace {

/// Turns what Python raises into the errors that the storage layer treats differently. Anything else goes on
/// as it is, so that an ImportError stays one.
template <typename Call>
auto with_errors_of_python(const Call& call) {
  try {
    return call();
  } catch (py::error_already_set& error) {
    const std::string message = py::str(error.value()).cast<std::string>();
    if (error.matches(PyExc_FileNotFoundError)) throw Error(ErrorKind::not_found, message, ENOENT);
    if (error.matches(PyExc_PermissionError)) throw Error(ErrorKind::io, message, EACCES);
    if (error.matches(PyExc_FileExistsError)) throw Error(ErrorKind::io, message, EEXIST);
    if (error.matches(PyExc_OSError)) {
      const bool has_changed = py::int_(ESTALE).equal(error.value().attr("errno"));
      throw Error(ErrorKind::io, message, has_changed ? ESTALE : EIO);
    }
    if (error.matches(PyExc_ValueError)) throw Error(ErrorKind::argument, message);
    throw;
  }
}

/// The same of a call that writes, of which only an interrupt goes on as it is: what is written is taken back
/// after anything else.
template <typename Call>
auto with_all_errors_of_python(const Call& call) {
  try {
    return with_errors_of_python(call);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_Exception)) throw;
    throw Error(ErrorKind::io, py::str(error.value()).cast<std::string>(), EIO);
  }
}

using Described = std::tuple<std::string, std::uint64_t, std::string, bool, double>;

RemoteObject object_from(const Described& described) {
  const auto& [name, size, version, is_folder, modified] = described;
  return {name, size, version, is_folder, modified};
}

/// A view of a Python object's bytes.
class Bytes {
 public:
  explicit Bytes(const py::handle& object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) throw py::error_already_set();
  }
  ~Bytes() { PyBuffer_Release(&view_); }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;

  const void* data() const { return view_.buf; }
  std::size_t size() const { return static_cast<std::size_t>(view_.len); }

 private:
  Py_buffer view_{};
};

/// What an iterator over buffers brings: the first of them if it has all, otherwise a copy, made without the
/// interpreter.
ArrivedBytes take(const py::object& buffers, std::size_t count, const std::atomic<bool>& stopped,
                  const std::string& address) {
  const py::iterator iterator = py::iter(buffers);
  std::shared_ptr<std::byte[]> memory;
  std::size_t done = 0;
  while (!stopped) {
    const auto buffer = py::reinterpret_steal<py::object>(PyIter_Next(iterator.ptr()));
    if (!buffer) {
      if (PyErr_Occurred() != nullptr) throw py::error_already_set();
      break;
    }
    auto whole = std::make_unique<const Bytes>(buffer);
    const Bytes& bytes = *whole;
    if (bytes.size() == count && done == 0) {
      const auto* const data = static_cast<const std::byte*>(bytes.data());
      const auto give_back = [](const Bytes* taken) {
        const py::gil_scoped_acquire acquire;
        delete taken;
      };
      return {std::shared_ptr<const Bytes>(whole.release(), give_back), data};
    }
    if (bytes.size() > count - done) {
      throw Error(ErrorKind::io,
                  address + ": expected " + std::to_string(count) + " bytes, found more of them", EIO);
    }
    const py::gil_scoped_release release;
    if (memory == nullptr) memory = std::make_shared_for_overwrite<std::byte[]>(count);
    std::memcpy(memory.get() + done, bytes.data(), bytes.size());
    done += bytes.size();
  }
  if (stopped || done == count) return {memory, memory.get()};
  throw Error(
      ErrorKind::io,
      address + ": expected " + std::to_string(count) + " bytes, found " + std::to_string(done) + " of them",
      EIO);
}

}  // namespace

void bind_remote(py::module_& m) {
  m.def(
      "set_remote_calls",
      [](const py::function& list, const py::function& head, const py::function& arriving,
         const py::function& plain_url, const py::function& put, const py::function& remove) {
        RemoteCalls calls;
        calls.list = [list](const std::string& folder) {
          const py::gil_scoped_acquire acquire;
          return with_errors_of_python([&] {
            std::vector<RemoteObject> objects;
            for (const Described& one : list(folder).cast<std::vector<Described>>())
              objects.push_back(object_from(one));
            return objects;
          });
        };
        calls.head = [head](const std::string& address) {
          const py::gil_scoped_acquire acquire;
          return with_errors_of_python([&] { return object_from(head(address).cast<Described>()); });
        };
        calls.read = [arriving](const std::string& address, const std::string& version, std::uint64_t offset,
                                std::size_t count, const std::atomic<bool>& stopped) {
          const py::gil_scoped_acquire acquire;
          return with_errors_of_python(
              [&] { return take(arriving(address, version, offset, count), count, stopped, address); });
        };
        calls.plain_url = [plain_url](const std::string& address) {
          const py::gil_scoped_acquire acquire;
          auto [url, good_for, stall] =
              plain_url(address).cast<std::tuple<std::string, std::int64_t, std::int64_t>>();
          return PlainUrl{std::move(url), std::chrono::seconds(good_for), std::chrono::seconds(stall)};
        };
        calls.put = [put](const std::string& address, std::string_view bytes, bool only_new,
                          const std::string& only_over) {
          const py::gil_scoped_acquire acquire;
          return with_all_errors_of_python([&] {
            const py::bytes given(bytes.data(), bytes.size());
            return object_from(put(address, given, only_new, only_over).cast<Described>());
          });
        };
        calls.remove = [remove](const std::string& address) {
          const py::gil_scoped_acquire acquire;
          with_all_errors_of_python([&] { remove(address); });
        };
        set_remote_calls(std::move(calls));
      },
      py::arg("listed"), py::arg("head"), py::arg("arriving"), py::arg("plain_url"), py::arg("put"),
      py::arg("remove"),
      "How objects are reached. listed(folder): (name, bytes, version, whether it is a folder, seconds since "
      "1970 or 0) of each thing directly below; head(address): the same of an object; arriving(address, "
      "version, begin, count): an "
      "iterator over buffers; plain_url(address): where it is had by HTTP without TLS, or an empty text, for "
      "how many seconds, and in how many the server must send something; put(address, bytes, only_new, "
      "only_over): the same of what is there then; remove(address).");
  m.def(
      "forget_plain_urls", &forget_plain_urls,
      "What is known of plain addresses is asked anew: stores have been opened anew, by other credentials.");
}

}  // namespace shardwright
