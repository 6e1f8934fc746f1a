// Modulated deformable convolution (DCNv2, arXiv 1811.11168, equation 1) as one kernel: sampling and product together.
//
// A block of 128 threads makes TILE output pixels of one image for one tile of output channels. It goes through the
// product's inner dimension in chunks: the threads sample the chunk's columns into shared memory, each coordinate and
// mask read once for all channels that share it, and multiply them with the packed weights. Half storage multiplies on
// the tensor cores (m16n8, float sums), float storage in float. Columns never go to global memory.
//
// The header needs nothing but a compiler. NVRTC and nvcc make the kernel of it; a host compiler makes a program that
// runs the same lines, thread after thread between two synchronisations. That is what `Team` is for: `each` runs a
// piece of work for every thread of the block, on the device for the one that calls it.
//
// A problem is a struct of compile-time numbers, `Geometry`: channels, out_channels, kernel_h, kernel_w, stride_h,
// stride_w, padding_h, padding_w, dilation_h, dilation_w, groups, offset_groups, has_mask, has_bias, channels_last; and
// height and width of the map, or 0 where only a launch tells. Where they are known, most addresses are constants, and
// about a third of all instructions falls away.
// geometry.py writes it, plans the launch by the same rules as `Plan` and packs the weights.
#pragma once

#if defined(__CUDACC__)
#define DEFORM_CONV_KERNEL __global__ __launch_bounds__(128)
#define DEFORM_CONV_CODE __device__ __forceinline__
#define DEFORM_CONV_UNROLL _Pragma("unroll")
#else
#include <cmath>
#include <cstring>
#define DEFORM_CONV_KERNEL
#define DEFORM_CONV_CODE inline
#define DEFORM_CONV_UNROLL
#endif

namespace deform_conv {

constexpr int TILE = 64;     // output pixels of a block
constexpr int THREADS = 128;
constexpr int WARP = 32;
constexpr int WARPS = THREADS / WARP;
constexpr int WIDEST = 64;   // channels of a chunk, and output channels of a block, at most

struct Half {
    unsigned short bits;
};

DEFORM_CONV_CODE float widen(float value) { return value; }

DEFORM_CONV_CODE float widen(Half value) {
#if defined(__CUDACC__)
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
#else
    _Float16 narrow;
    std::memcpy(&narrow, &value, sizeof narrow);
    return narrow;
#endif
}

DEFORM_CONV_CODE void narrow(float wide, float& to) { to = wide; }

DEFORM_CONV_CODE void narrow(float wide, Half& to) {
#if defined(__CUDACC__)
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(wide));
#else
    _Float16 value = static_cast<_Float16>(wide);
    std::memcpy(&to, &value, sizeof to);
#endif
}

// Two at once, the first in the lower half.
DEFORM_CONV_CODE unsigned narrow(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    unsigned both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
#else
    Half one, two;
    narrow(first, one);
    narrow(second, two);
    return one.bits | static_cast<unsigned>(two.bits) << 16;
#endif
}

// Neighbours that are loaded and stored as one.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
    T at[N];
};

template <int N, class T>
DEFORM_CONV_CODE Pack<T, N> load(const T* from) {
    return *reinterpret_cast<const Pack<T, N>*>(from);
}

// Offsets and masks are read once: they need not push the map and the weights out of the first cache.
template <class T>
DEFORM_CONV_CODE float load_once(const T* from) {
    return widen(*from);
}
#if defined(__CUDACC__)
template <>
DEFORM_CONV_CODE float load_once<float>(const float* from) {
    return __ldcs(from);
}
template <>
DEFORM_CONV_CODE float load_once<Half>(const Half* from) {
    return widen(Half{__ldcs(&from->bits)});
}
#endif

DEFORM_CONV_CODE constexpr int gcd(int a, int b) { return b ? gcd(b, a % b) : a; }
DEFORM_CONV_CODE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
DEFORM_CONV_CODE constexpr int largest_divisor(int of, int most) { return of % most ? largest_divisor(of, most - 1) : most; }
DEFORM_CONV_CODE constexpr int smaller(int a, int b) { return a < b ? a : b; }
DEFORM_CONV_CODE constexpr int larger(int a, int b) { return a > b ? a : b; }

template <class T>
constexpr bool is_half = sizeof(T) == sizeof(Half);

// What follows from the geometry. A unit is one tap of `depth` channels that share a convolution group and an offset
// group; the inner dimension of the product is (tap, block of channels, channel).
template <class T, class G>
struct Plan {
    static constexpr int taps = G::kernel_h * G::kernel_w;
    static constexpr int channels = G::channels / G::groups;  // of a convolution group
    static constexpr int outputs = G::out_channels / G::groups;
    static constexpr int shared_offset = G::channels / G::offset_groups;
    static constexpr int together = gcd(channels, shared_offset);
    static constexpr int depth = largest_divisor(together, smaller(together, WIDEST));
    static constexpr int blocks = channels / depth;
    static constexpr int units = taps * blocks;
    static constexpr int of_tap = largest_divisor(blocks, smaller(blocks, WIDEST / depth));
    static constexpr int taps_at_once = of_tap < blocks ? 1 : larger(1, smaller(taps, 48 / channels));
    static constexpr int at_once = of_tap * taps_at_once;  // units of a chunk
    static constexpr int chunks = ceil_div(units, at_once);
    static constexpr int rows = is_half<T> ? ceil_div(at_once * depth, 16) * 16 : at_once * depth;  // of a chunk
    static constexpr int output_tiles = ceil_div(outputs, WIDEST);
    static constexpr int width = ceil_div(ceil_div(outputs, output_tiles), 16) * 16;  // output channels of a block
    static constexpr int weights = chunks * rows * width;  // packed, of a block
    // Half: a pixel's column lies together, padded so that fragments come from different banks. Float: a row's pixels.
    static constexpr int stride = is_half<T> ? rows + 8 : TILE;
    static constexpr int columns = is_half<T> ? TILE * stride : rows * TILE;
    static constexpr int shared = larger(2 * columns, is_half<T> ? TILE * (width + 8) : 0);
    static constexpr int vector = depth % 8 == 0 && is_half<T> ? 8 : depth % 4 == 0 ? 4 : 1;
    // How a warp is laid over (units, pixels): with channels last, neighbouring units are neighbours in memory.
    static constexpr int unit_lanes = is_half<T> && G::channels_last ? gcd(at_once, 4) : 1;
    static constexpr int pixel_lanes = WARP / unit_lanes;
    static constexpr int pixel_rows = TILE / pixel_lanes;  // groups of pixels that a warp takes at once
    static constexpr int slots = larger(1, pixel_rows / WARPS);  // pixels of a thread
    static constexpr int unit_step = larger(1, WARPS / pixel_rows) * unit_lanes;
    static constexpr int chunks_of_tap = of_tap < blocks ? blocks / of_tap : 1;
    static constexpr int sums = width * TILE / THREADS;  // of a thread
};

// What one thread keeps in registers.
template <class T, class G>
struct Worker {
    using P = Plan<T, G>;
    int thread;
    int pixel[P::slots];             // within the tile
    int at[P::slots];                // within the result
    float y[P::slots], x[P::slots];  // of the kernel's first tap, without offset
    float sum[P::sums];
    unsigned a[4], b[4];             // fragments of the tensor-core product
};

struct Size {
    int height, width, out_height, out_width;
};

// The sizes of a launch, as constants where the geometry has them.
template <class G>
DEFORM_CONV_CODE Size sizes(const Size& given) {
    if constexpr (G::height > 0 && G::width > 0)
        return {G::height, G::width,
                (G::height + 2 * G::padding_h - G::dilation_h * (G::kernel_h - 1) - 1) / G::stride_h + 1,
                (G::width + 2 * G::padding_w - G::dilation_w * (G::kernel_w - 1) - 1) / G::stride_w + 1};
    else
        return given;
}

template <class T>
struct Tensors {
    const T* x;           // (B, C, H, W), or (B, H, W, C) with channels last
    const float* offset;  // (B, offset groups, taps, 2, h, w) as y, x
    const T* mask;        // (B, offset groups, taps, h, w)
    const T* weight;      // packed by geometry.py
    const float* bias;    // (O,)
    T* y;                 // (B, O, h, w), or (B, h, w, O) with channels last
};

// The tile of a block: `image` of the batch, `first` pixel, convolution group and tile of its output channels.
struct Place {
    long long image;
    int first, group, output_tile;
};

template <class G, class T>
DEFORM_CONV_CODE Place place_of(unsigned block_x, unsigned block_y, const Size& size) {
    const unsigned tiles = (size.out_height * size.out_width + TILE - 1) / TILE;
    constexpr int output_tiles = Plan<T, G>::output_tiles;
    const int group = G::groups == 1 ? 0 : static_cast<int>(block_y) / output_tiles;
    return {block_x / tiles, static_cast<int>(block_x % tiles) * TILE, group,
            static_cast<int>(block_y) - group * output_tiles};
}

template <class T, class G>
DEFORM_CONV_CODE void begin(Worker<T, G>& w, const Size& size, const Place& place) {
    using P = Plan<T, G>;
    const int warp = w.thread / WARP, lane = w.thread % WARP, last = size.out_height * size.out_width - 1;
    DEFORM_CONV_UNROLL
    for (int slot = 0; slot < P::slots; ++slot) {
        const int row = (warp + slot * WARPS) % P::pixel_rows;
        w.pixel[slot] = row * P::pixel_lanes + lane % P::pixel_lanes;
        w.at[slot] = smaller(place.first + w.pixel[slot], last);  // past the end: sampled, never stored
        w.y[slot] = static_cast<float>(w.at[slot] / size.out_width * G::stride_h - G::padding_h);
        w.x[slot] = static_cast<float>(w.at[slot] % size.out_width * G::stride_w - G::padding_w);
    }
    DEFORM_CONV_UNROLL
    for (int i = 0; i < P::sums; ++i) w.sum[i] = 0.0f;
}

// The largest whole number not above `position`, which is one of a map; `bits` is it too, as an integer. On the device by
// an addition that rounds down, because conversions have a fraction of the throughput.
DEFORM_CONV_CODE float whole_part(float position, int& bits) {
#if defined(__CUDACC__)
    constexpr float middle = 12582912.0f;  // 1.5 * 2^23: the next float is one more
    const float sum = __fadd_rd(position, middle);
    bits = __float_as_int(sum) - 0x4b400000;
    return sum - middle;
#else
    bits = static_cast<int>(std::floor(position));
    return static_cast<float>(bits);
#endif
}

DEFORM_CONV_CODE float at_least_zero(float value) {
#if defined(__CUDACC__)
    return fmaxf(value, 0.0f);
#else
    return std::fmax(value, 0.0f);
#endif
}

// One axis of a sample: the first of two neighbouring cells and what each has of it. Every cell's share is a hat of width
// two around it, so the cells may be any two that lie in the map: what is far from the position, or next to a position
// that is no number, gets nothing. A map of one cell has no second.
struct Axis {
    int first;
    float share, next_share;
};

DEFORM_CONV_CODE Axis axis(float position, int size) {
    const float last = static_cast<float>(size > 1 ? size - 2 : 0), inside = at_least_zero(position);
    Axis found;
    const float distance = position - whole_part(inside < last ? inside : last, found.first);
#if defined(__CUDACC__)
    found.share = at_least_zero(1.0f - fabsf(distance));
    found.next_share = size > 1 ? at_least_zero(1.0f - fabsf(distance - 1.0f)) : 0.0f;
#else
    found.share = at_least_zero(1.0f - std::fabs(distance));
    found.next_share = size > 1 ? at_least_zero(1.0f - std::fabs(distance - 1.0f)) : 0.0f;
#endif
    return found;
}

// The four cells of a sample: the first, how far the others are from it, and their shares, mask included.
struct Corners {
    int first, right, down;
    float share[4];
};

DEFORM_CONV_CODE Corners corners(float y, float x, float mask, int height, int width) {
    const Axis row = axis(y, height), column = axis(x, width);
    const float upper = row.share * mask, lower = row.next_share * mask;
    return {row.first * width + column.first, width > 1 ? 1 : 0, height > 1 ? width : 0,
            {upper * column.share, upper * column.next_share, lower * column.share, lower * column.next_share}};
}

// N channels of one sample, in float; `channel` is where the first of them lies in the sample's first cell.
template <int N, class G, class T>
DEFORM_CONV_CODE void gather(const T* channel, int plane, const Corners& from, float (&value)[N]) {
    DEFORM_CONV_UNROLL
    for (int i = 0; i < N; ++i) value[i] = 0.0f;
    DEFORM_CONV_UNROLL
    for (int corner = 0; corner < 4; ++corner) {
        const int away = corner % 2 * from.right + corner / 2 * from.down;
        if constexpr (G::channels_last) {
            const Pack<T, N> cell = load<N>(channel + away * G::channels);
            DEFORM_CONV_UNROLL
            for (int i = 0; i < N; ++i) value[i] += from.share[corner] * widen(cell.at[i]);
        } else {
            DEFORM_CONV_UNROLL
            for (int i = 0; i < N; ++i) value[i] += from.share[corner] * widen(channel[i * plane + away]);
        }
    }
}

template <class G, class Team, class W>
DEFORM_CONV_CODE void put(Team& team, const W& w, Half* columns, int row, int pixel, const float* value, bool there) {
    using P = Plan<Half, G>;
    Half* to = columns + pixel * P::stride + row;
    team.writes(w, to, P::vector * sizeof(Half));
    if constexpr (P::vector == 1) {
        narrow(there ? *value : 0.0f, *to);
    } else {
        Pack<unsigned, P::vector / 2> column;
        DEFORM_CONV_UNROLL
        for (int i = 0; i < P::vector; i += 2) column.at[i / 2] = there ? narrow(value[i], value[i + 1]) : 0;
        *reinterpret_cast<Pack<unsigned, P::vector / 2>*>(to) = column;
    }
}

template <class G, class Team, class W>
DEFORM_CONV_CODE void put(Team& team, const W& w, float* columns, int row, int pixel, const float* value, bool there) {
    using P = Plan<float, G>;
    DEFORM_CONV_UNROLL
    for (int i = 0; i < P::vector; ++i) {
        float* to = columns + (row + i) * P::stride + pixel;
        team.writes(w, to, sizeof *to);
        *to = there ? value[i] : 0.0f;
    }
}

// One thread's samples of a chunk. Addresses are a thread's own part, the same for all its samples, and the step from one
// unit to the next, which is a constant where the map's size is one.
template <class T, class G, class Team>
DEFORM_CONV_CODE void sample(Team& team, Worker<T, G>& w, const Tensors<T>& tensors, const Size& size,
                             const Place& place, int chunk, T* columns) {
    using P = Plan<T, G>;
    constexpr int vector = P::vector;
    constexpr int cell = G::channels_last ? G::channels : 1;  // from a cell to its right neighbour
    const int plane = size.height * size.width, out_plane = size.out_height * size.out_width;
    const int step_of_channel = G::channels_last ? 1 : plane;
    const int mine = w.thread / WARP / P::pixel_rows * P::unit_lanes + w.thread % WARP / P::pixel_lanes;
    const int first_block = place.group * P::blocks + (P::taps_at_once > 1 ? 0 : chunk % P::chunks_of_tap * P::of_tap);
    const T* map = tensors.x + place.image * G::channels * plane;
    const long long first_offset = place.image * (G::offset_groups * P::taps) * out_plane;
    DEFORM_CONV_UNROLL
    for (int slot = 0; slot < P::slots; ++slot) {
        DEFORM_CONV_UNROLL
        for (int step = 0; step < P::at_once; step += P::unit_step) {
            const int local = mine + step;
            if (P::at_once % P::unit_step != 0 && local >= P::at_once) continue;
            const int row = local * P::depth;
            const int tap = P::taps_at_once > 1 ? chunk * P::taps_at_once + local / P::blocks : chunk / P::chunks_of_tap;
            if (P::units % P::at_once != 0 && tap >= P::taps) {
                DEFORM_CONV_UNROLL
                for (int i = 0; i < P::depth; i += vector)
                    put<G>(team, w, columns, row + i, w.pixel[slot], w.sum, false);
                continue;
            }
            constexpr bool own_offsets = P::taps_at_once == 1 && P::shared_offset == P::depth;  // of every block
            const int block = P::taps_at_once > 1 ? first_block + local % P::blocks : first_block + local;
            const int offset_group = own_offsets ? first_block + mine : block / (P::shared_offset / P::depth);
            const long long shift = first_offset + (offset_group * P::taps + tap) * out_plane + w.at[slot];
            const int further = own_offsets ? step * P::taps * out_plane : 0;
            const float* dy = tensors.offset + (2 * shift - w.at[slot]) + 2 * further;
            const Corners from = corners(
                w.y[slot] + static_cast<float>(tap / G::kernel_w * G::dilation_h) + load_once(dy),
                w.x[slot] + static_cast<float>(tap % G::kernel_w * G::dilation_w) + load_once(dy + out_plane),
                G::has_mask ? load_once(tensors.mask + shift + further) : 1.0f, size.height, size.width);
            const int own_block = P::taps_at_once > 1 ? block : first_block + mine;
            const int further_blocks = P::taps_at_once > 1 ? 0 : step;
            const T* channel = map + own_block * P::depth * step_of_channel + from.first * cell +
                               further_blocks * P::depth * step_of_channel;
            DEFORM_CONV_UNROLL
            for (int i = 0; i < P::depth; i += vector) {
                float value[vector];
                gather<vector, G>(channel + i * step_of_channel, plane, from, value);
                put<G>(team, w, columns, row + i, w.pixel[slot], value, true);
            }
        }
    }
}

// Half storage: a warp multiplies 16 pixels with all the block's output channels, 16 rows at a time. Fragments are laid
// out as the PTX ISA has them for mma.m16n8k16; weights were packed in the order in which lanes hold them, two tiles of
// eight output channels together.
template <class G, class Team>
DEFORM_CONV_CODE void multiply(Team& team, const Half* columns, const Half* weight) {
    using P = Plan<Half, G>;
    DEFORM_CONV_UNROLL
    for (int k = 0; k < P::rows; k += 16) {
        team.each([&](Worker<Half, G>& w) {
            const int warp = w.thread / WARP, lane = w.thread % WARP;
            const Half* column = columns + (warp * 16 + lane / 4) * P::stride + k + lane % 4 * 2;
            DEFORM_CONV_UNROLL
            for (int part = 0; part < 4; ++part) {
                const Half* from = column + part % 2 * 8 * P::stride + part / 2 * 8;
                team.reads(w, from, sizeof w.a[part]);
                w.a[part] = reinterpret_cast<const Pack<unsigned, 1>*>(from)->at[0];
            }
        });
        DEFORM_CONV_UNROLL
        for (int pair = 0; pair < P::width / 16; ++pair) {
            team.each([&](Worker<Half, G>& w) {
                const Half* from = weight + ((k / 16 * (P::width / 16) + pair) * WARP + w.thread % WARP) * 8;
                const Pack<unsigned, 4> both = load<4>(reinterpret_cast<const unsigned*>(from));
                DEFORM_CONV_UNROLL
                for (int part = 0; part < 4; ++part) w.b[part] = both.at[part];
            });
            team.multiply_add(pair * 8, 0);
            team.multiply_add(pair * 8 + 4, 2);
        }
    }
}

// Float storage: a thread multiplies two pixels with a quarter of the output channels.
template <class G, class Team>
DEFORM_CONV_CODE void multiply(Team& team, const float* columns, const float* weight) {
    using P = Plan<float, G>;
    constexpr int mine = P::width / WARPS;
    team.each([&](Worker<float, G>& w) {
        const int warp = w.thread / WARP, lane = w.thread % WARP;
        for (int k = 0; k < P::rows; ++k) {
            const float* row = columns + k * P::stride + lane;
            team.reads(w, row, sizeof *row);
            team.reads(w, row + WARP, sizeof *row);
            const float near = row[0], far = row[WARP];
            DEFORM_CONV_UNROLL
            for (int i = 0; i < mine; i += 4) {
                const Pack<float, 4> four = load<4>(weight + k * P::width + warp * mine + i);
                DEFORM_CONV_UNROLL
                for (int j = 0; j < 4; ++j) {
                    w.sum[i + j] += near * four.at[j];
                    w.sum[mine + i + j] += far * four.at[j];
                }
            }
        }
    });
}

template <class T, class G>
DEFORM_CONV_CODE void write(const Tensors<T>& tensors, const Size& size, const Place& place, int pixel, int output,
                            T value) {
    const int out_plane = size.out_height * size.out_width, at = place.first + pixel;
    if (at >= out_plane) return;
    const long long image = place.image * G::out_channels * out_plane;
    tensors.y[image + (G::channels_last ? at * G::out_channels + output : output * out_plane + at)] = value;
}

template <class T, class G>
DEFORM_CONV_CODE float bias_of(const Tensors<T>& tensors, int output) {
    return G::has_bias ? tensors.bias[output] : 0.0f;
}

// Half storage: the sums go through shared memory, so that neighbours are written together.
template <class G, class Team>
DEFORM_CONV_CODE void finish(Team& team, const Tensors<Half>& tensors, const Size& size, const Place& place,
                             Half* shared) {
    using P = Plan<Half, G>;
    constexpr int stride = P::width + 8;
    const int first = place.output_tile * P::width, count = smaller(P::width, P::outputs - first);
    team.sync();
    team.each([&](Worker<Half, G>& w) {
        const int warp = w.thread / WARP, lane = w.thread % WARP;
        DEFORM_CONV_UNROLL
        for (int i = 0; i < P::sums; ++i) {
            const int pixel = warp * 16 + lane / 4 + i % 4 / 2 * 8, output = i / 4 * 8 + lane % 4 * 2 + i % 2;
            const float bias = output < count ? bias_of<Half, G>(tensors, place.group * P::outputs + first + output) : 0;
            Half* to = shared + pixel * stride + output;
            team.writes(w, to, sizeof *to);
            narrow(w.sum[i] + bias, *to);
        }
    });
    team.sync();
    team.each([&](Worker<Half, G>& w) {
        for (int i = w.thread; i < TILE * count; i += THREADS) {
            const int pixel = G::channels_last ? i / count : i % TILE, output = G::channels_last ? i % count : i / TILE;
            const Half* from = shared + pixel * stride + output;
            team.reads(w, from, sizeof *from);
            write<Half, G>(tensors, size, place, pixel, place.group * P::outputs + first + output, *from);
        }
    });
}

template <class G, class Team>
DEFORM_CONV_CODE void finish(Team& team, const Tensors<float>& tensors, const Size& size, const Place& place, float*) {
    using P = Plan<float, G>;
    constexpr int mine = P::width / WARPS;
    const int first = place.output_tile * P::width;
    team.each([&](Worker<float, G>& w) {
        DEFORM_CONV_UNROLL
        for (int i = 0; i < mine; ++i) {
            const int local = first + w.thread / WARP * mine + i, output = place.group * P::outputs + local;
            if (local >= P::outputs) continue;
            const float bias = bias_of<float, G>(tensors, output);
            write<float, G>(tensors, size, place, w.thread % WARP, output, w.sum[i] + bias);
            write<float, G>(tensors, size, place, w.thread % WARP + WARP, output, w.sum[mine + i] + bias);
        }
    });
}

// The whole work of one block. `shared` has room for Plan::shared numbers, aligned to 16 bytes.
template <class T, class G, class Team>
DEFORM_CONV_CODE void run(Team& team, const Tensors<T>& tensors, const Size& given, unsigned block_x, unsigned block_y,
                          T* shared) {
    using P = Plan<T, G>;
    const Size size = sizes<G>(given);
    const Place place = place_of<G, T>(block_x, block_y, size);
    const T* weight = tensors.weight + static_cast<long long>(block_y) * P::weights;
    team.each([&](Worker<T, G>& w) {
        begin<T, G>(w, size, place);
        if constexpr (is_half<T> && P::at_once * P::depth < P::rows) {  // rows that are multiplied and never sampled
            constexpr int spare = P::rows - P::at_once * P::depth;
            for (int i = w.thread; i < 2 * TILE * spare; i += THREADS) {
                T* to = shared + i / spare * P::stride + P::at_once * P::depth + i % spare;
                team.writes(w, to, sizeof *to);
                narrow(0.0f, *to);
            }
        }
    });
    for (int chunk = 0; chunk < P::chunks; ++chunk) {
        T* columns = shared + chunk % 2 * P::columns;  // two in turns: one synchronisation a chunk is enough
        team.each([&](Worker<T, G>& w) { sample<T, G>(team, w, tensors, size, place, chunk, columns); });
        team.sync();
        multiply<G>(team, columns, weight + chunk * (P::rows * P::width));
    }
    finish<G>(team, tensors, size, place, shared);
}

#if defined(__CUDACC__)
// One thread of the block, as the work sees it.
template <class T, class G>
struct DeviceTeam {
    Worker<T, G> w;

    template <class Work>
    __device__ __forceinline__ void each(Work work) { work(w); }
    __device__ __forceinline__ void sync() { __syncthreads(); }
    __device__ __forceinline__ void reads(const Worker<T, G>&, const void*, int) {}
    __device__ __forceinline__ void writes(const Worker<T, G>&, const void*, int) {}

    // sum[first .. first + 3] += a * b[from], b[from + 1], over the warp.
    __device__ __forceinline__ void multiply_add(int first, int from) {
        float* c = w.sum + first;
#if __CUDA_ARCH__ >= 800
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(w.a[0]), "r"(w.a[1]), "r"(w.a[2]), "r"(w.a[3]), "r"(w.b[from]), "r"(w.b[from + 1]));
#else
        DEFORM_CONV_UNROLL
        for (int half = 0; half < 2; ++half)
            asm volatile(
                "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                : "r"(w.a[2 * half]), "r"(w.a[2 * half + 1]), "r"(w.b[from + half]));
#endif
    }
};

// The body of a kernel; its grid is (batch * tiles of pixels, groups * tiles of output channels), its block THREADS.
template <class T, class G>
__device__ __forceinline__ void kernel(const Tensors<T>& tensors, const Size& size) {
    __shared__ alignas(16) T shared[Plan<T, G>::shared];
    DeviceTeam<T, G> team;
    team.w.thread = threadIdx.x;
    run<T, G>(team, tensors, size, blockIdx.x, blockIdx.y, shared);
}
#endif

}  // namespace deform_conv
