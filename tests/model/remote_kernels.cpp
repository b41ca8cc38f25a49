// Calls functions of a kernel library on behalf of a process of another architecture: a request on stdin, the
// buffers as the call left them on stdout. Its caller is foreign_kernels.py.
//
// A request: the length of a name and the name; the number of arguments; for each its kind and its value, and for a
// buffer its bytes. Kinds: 0 an integer or no buffer, 1 a float, 2 a buffer of so many bytes.
//
// Integers and addresses fill their registers and then the stack, floating-point numbers registers of their own, on
// Linux for 64-bit ARM as for x86-64. So one type of function with many of both serves for all with fewer.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr int MOST_INTEGERS = 40, MOST_NUMBERS = 8;

template <class T>
T take() {
    T value;
    if (std::fread(&value, sizeof value, 1, stdin) != 1) std::exit(0);
    return value;
}

template <int... I, int... N>
int64_t called(void* function, const int64_t* integers, const double* numbers, std::integer_sequence<int, I...>,
               std::integer_sequence<int, N...>) {
    using Function = int64_t (*)(decltype(int64_t{I})..., decltype(double{N})...);
    return reinterpret_cast<Function>(function)(integers[I]..., numbers[N]...);
}

}  // namespace

int main(int, char** arguments) {
    void* library = dlopen(arguments[1], RTLD_NOW);
    if (!library) return std::fprintf(stderr, "%s\n", dlerror()), 1;
    while (true) {
        std::string name(take<int64_t>(), ' ');
        for (char& letter : name) letter = take<char>();
        void* function = dlsym(library, name.c_str());
        if (!function) return std::fprintf(stderr, "%s\n", dlerror()), 1;
        int64_t integers[MOST_INTEGERS] = {};
        double numbers[MOST_NUMBERS] = {};
        int next_integer = 0, next_number = 0;
        std::vector<std::vector<char>> buffers;
        const int64_t count = take<int64_t>();
        for (int64_t i = 0; i < count; i++) {
            const int64_t kind = take<int64_t>(), value = take<int64_t>();
            if (kind == 1) {
                std::memcpy(&numbers[next_number++], &value, sizeof value);  // a float lies in the low half
                continue;
            }
            integers[next_integer++] = value;
            if (kind == 2) {
                std::vector<char> bytes(value);
                if (value && std::fread(bytes.data(), 1, value, stdin) != static_cast<size_t>(value)) return 1;
                buffers.push_back(std::move(bytes));
                integers[next_integer - 1] = reinterpret_cast<int64_t>(buffers.back().data());
            }
        }
        const int64_t result = called(function, integers, numbers, std::make_integer_sequence<int, MOST_INTEGERS>{},
                                      std::make_integer_sequence<int, MOST_NUMBERS>{});
        std::fwrite(&result, sizeof result, 1, stdout);
        for (const auto& bytes : buffers) std::fwrite(bytes.data(), 1, bytes.size(), stdout);
        std::fflush(stdout);
    }
}
