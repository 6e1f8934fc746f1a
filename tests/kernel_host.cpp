// Runs kernels of kernel.cuh on the CPU: thread after thread between two synchronisations, block after block, launched as
// the driver launches them, by a grid, a block and a list of pointers to arguments.
//
// usage: program KERNEL GRID_X GRID_Y GRID_Z BLOCK_X BLOCK_Y BLOCK_Z ARGUMENT...
// An argument is in:FILE (a buffer of just that size), int:NUMBER, null: or out:FILE:BYTES. Memory errors are the sanitizers'
// to find. Shared memory is watched here: a place that one thread writes and another reads or writes without a
// synchronisation in between ends the program. SKIP_SYNC=N in the environment leaves out the N-th synchronisation of
// every block, by which a test sees that this watch is awake.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "kernel.cuh"

namespace {

[[noreturn]] void fail(const std::string& why) {
    std::fprintf(stderr, "%s\n", why.c_str());
    std::exit(1);
}

unsigned block_x, block_y;

// Who touched each byte of shared memory since the last synchronisation.
class Watch {
  public:
    Watch(const void* start, std::size_t size)
        : start_(static_cast<const char*>(start)), writers_(size, nobody), readers_(size, nobody) {
        const char* wanted = std::getenv("SKIP_SYNC");
        skip_ = wanted ? std::atoi(wanted) : -1;
    }

    void sync() {
        if (count_++ == skip_) return;
        writers_.assign(writers_.size(), nobody);
        readers_.assign(readers_.size(), nobody);
    }

    void reads(int thread, const void* at, int bytes) {
        for (std::size_t i = place(at, bytes); bytes-- > 0; ++i) {
            if (writers_[i] != nobody && writers_[i] != thread) race(i);
            readers_[i] = readers_[i] == nobody || readers_[i] == thread ? thread : many;
        }
    }

    void writes(int thread, const void* at, int bytes) {
        for (std::size_t i = place(at, bytes); bytes-- > 0; ++i) {
            if ((writers_[i] != nobody && writers_[i] != thread) || (readers_[i] != nobody && readers_[i] != thread))
                race(i);
            writers_[i] = thread;
        }
    }

  private:
    static constexpr int nobody = -1, many = -2;

    std::size_t place(const void* at, int bytes) const {
        const std::ptrdiff_t i = static_cast<const char*>(at) - start_;
        if (i < 0 || i + bytes > static_cast<std::ptrdiff_t>(writers_.size())) fail("outside of shared memory");
        return static_cast<std::size_t>(i);
    }

    [[noreturn]] void race(std::size_t i) const {
        fail("race on byte " + std::to_string(i) + " of shared memory after synchronisation " + std::to_string(count_));
    }

    const char* start_;
    std::vector<int> writers_, readers_;
    int count_ = 0, skip_ = -1;
};

template <class T, class G>
class HostTeam {
  public:
    using Worker = deform_conv::Worker<T, G>;

    explicit HostTeam(Watch& watch) : watch_(watch), workers_(deform_conv::THREADS) {
        for (int i = 0; i < deform_conv::THREADS; ++i) workers_[static_cast<std::size_t>(i)].thread = i;
    }

    template <class Work>
    void each(Work work) {
        for (Worker& worker : workers_) work(worker);
    }

    void sync() { watch_.sync(); }
    void reads(const Worker& w, const void* at, int bytes) { watch_.reads(w.thread, at, bytes); }
    void writes(const Worker& w, const void* at, int bytes) { watch_.writes(w.thread, at, bytes); }

    // mma.m16n8k16 by the PTX ISA's tables: which element of which factor each register of each lane holds.
    void multiply_add(int first, int from) {
        for (int warp = 0; warp < deform_conv::WARPS; ++warp) {
            Worker* lanes = workers_.data() + warp * deform_conv::WARP;
            float a[16][16], b[16][8];
            for (int lane = 0; lane < deform_conv::WARP; ++lane) {
                const int group = lane / 4, member = lane % 4;
                for (int i = 0; i < 8; ++i)
                    a[group + i / 2 % 2 * 8][member * 2 + i % 2 + i / 4 * 8] = element(lanes[lane].a[i / 2], i % 2);
                for (int i = 0; i < 4; ++i)
                    b[member * 2 + i % 2 + i / 2 * 8][group] = element(lanes[lane].b[from + i / 2], i % 2);
            }
            for (int lane = 0; lane < deform_conv::WARP; ++lane)
                for (int i = 0; i < 4; ++i)
                    for (int k = 0; k < 16; ++k)
                        lanes[lane].sum[first + i] += a[lane / 4 + i / 2 * 8][k] * b[k][lane % 4 * 2 + i % 2];
        }
    }

  private:
    static float element(unsigned both, int which) {
        return deform_conv::widen(deform_conv::Half{static_cast<unsigned short>(both >> (16 * which))});
    }

    Watch& watch_;
    std::vector<Worker> workers_;
};

}  // namespace

namespace deform_conv {

template <class T, class G>
void kernel(const Tensors<T>& tensors, const Size& size) {
    constexpr std::size_t bytes = Plan<T, G>::shared * sizeof(T);
    T* shared = static_cast<T*>(std::aligned_alloc(16, (bytes + 15) / 16 * 16));
    std::memset(shared, 0xff, bytes);  // not a number, whatever is read before it is written
    Watch watch(shared, bytes);
    HostTeam<T, G> team(watch);
    run<T, G>(team, tensors, size, block_x, block_y, shared);
    std::free(shared);
}

}  // namespace deform_conv

namespace {

template <class... A, std::size_t... I>
void call(void (*function)(A...), void** arguments, std::index_sequence<I...>) {
    function(*static_cast<A*>(arguments[I])...);
}

struct Kernel {
    std::function<void(void**)> launch;
    std::size_t arguments;
    std::string plan;
};

template <class T, class G, class... A>
Kernel described(void (*function)(A...)) {
    using P = deform_conv::Plan<T, G>;
    const int numbers[] = {P::depth, P::at_once, P::chunks, P::rows, P::output_tiles, P::width,
                           static_cast<int>(P::shared * sizeof(T))};
    std::string plan;
    for (int number : numbers) plan += (plan.empty() ? "" : " ") + std::to_string(number);
    return {[function](void** arguments) { call(function, arguments, std::index_sequence_for<A...>{}); }, sizeof...(A),
            plan};
}

}  // namespace

#include "kernels.inc"  // geometry.py's source of all kernels, then std::map<std::string, Kernel> kernels()

namespace {

struct Argument {
    void* pointer = nullptr;
    int number = 0;
    std::size_t bytes = 0;
    std::string out;
    bool is_number = false;
};

void* allocate(std::size_t bytes) {
    void* pointer = nullptr;
    if (posix_memalign(&pointer, 256, bytes)) fail("no memory");
    return pointer;
}

Argument parse(const std::string& text) {
    const std::size_t colon = text.find(':');
    const std::string kind = text.substr(0, colon), rest = text.substr(colon + 1);
    Argument argument;
    if (kind == "int") {
        argument.number = std::stoi(rest);
        argument.is_number = true;
    } else if (kind == "in") {
        std::ifstream file(rest, std::ios::binary);
        const std::vector<char> content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        argument.pointer = allocate(content.size());
        if (!content.empty()) std::memcpy(argument.pointer, content.data(), content.size());
    } else if (kind == "out") {
        const std::size_t last = rest.rfind(':');
        argument.out = rest.substr(0, last);
        argument.bytes = std::stoul(rest.substr(last + 1));
        argument.pointer = allocate(argument.bytes);
        std::memset(argument.pointer, 0xff, argument.bytes);  // not a number, where nothing is written
    } else if (kind != "null") {
        fail("an argument is in:, out:, int: or null:, not " + text);
    }
    return argument;
}

}  // namespace

int main(int count, char** words) {
    const std::map<std::string, Kernel> known = kernels();
    if (count == 1) {  // the plans, a line a kernel
        for (const auto& [name, kernel] : known) std::printf("%s %s\n", name.c_str(), kernel.plan.c_str());
        return 0;
    }
    if (count < 8 || !known.count(words[1])) fail("no such kernel");
    const Kernel& kernel = known.at(words[1]);
    unsigned shape[6];
    for (int i = 0; i < 6; ++i) shape[i] = static_cast<unsigned>(std::stoul(words[2 + i]));
    if (shape[2] != 1 || shape[3] != deform_conv::THREADS || shape[4] != 1 || shape[5] != 1) fail("not a block of ours");
    std::vector<Argument> arguments;
    for (int i = 8; i < count; ++i) arguments.push_back(parse(words[i]));
    if (arguments.size() != kernel.arguments) fail("wrong number of arguments");
    std::vector<void*> pointers;
    for (Argument& a : arguments) pointers.push_back(a.is_number ? static_cast<void*>(&a.number) : &a.pointer);
    for (block_y = 0; block_y < shape[1]; ++block_y)
        for (block_x = 0; block_x < shape[0]; ++block_x) kernel.launch(pointers.data());
    for (const Argument& a : arguments) {
        if (!a.out.empty())
            std::ofstream(a.out, std::ios::binary).write(static_cast<char*>(a.pointer), static_cast<long>(a.bytes));
        std::free(a.pointer);
    }
    return 0;
}
