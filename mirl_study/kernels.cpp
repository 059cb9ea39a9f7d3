// What stands between the matrix products of a transformer block, on (B, H, W, C) in float32, each tensor read once:
// 3x3 convolutions of each channel by itself, the GELU gate, and their derivatives. kernels.py builds it and calls it.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

namespace {

#ifndef VECTOR
#ifdef __AVX512F__
#define VECTOR 16
#else
#define VECTOR 8
#endif
#endif
constexpr long LANES = VECTOR;       // channels in a vector; the last one of a pixel overlaps the one before it
constexpr long BLOCK = 64 / LANES;   // vectors that a task takes at most: a quarter of a kilobyte of each pixel
constexpr long SPARE = 2 * LANES;    // floats between lines: a power of two apart they would share a set of the cache

static_assert(BLOCK > 1, "a last vector that overlaps must be in one block with the vector that it overlaps");

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));  // in a tensor, at any float

Vector get(const float *place) { return *reinterpret_cast<const Loose *>(place); }
void put(float *place, Vector value) { *reinterpret_cast<Loose *>(place) = value; }

struct Shape {
    long images, height, width, channels;
};

// Some channels of a tensor, `step` floats from pixel to pixel.
template <typename Float>
struct Part {
    Float *first;
    long step;
};

// Some vectors of one image: what a task works on. Its own lines hold one vector of one row each, pixel after pixel.
struct Block {
    Shape shape;
    long image, count;
    long channel[BLOCK];  // where each vector begins

    template <typename Float>
    Float *row(Part<Float> tensor, long y) const {
        return tensor.first + (image * shape.height + y) * shape.width * tensor.step;
    }
    long length() const { return shape.width * LANES; }  // of a row of one vector, in floats
    long line() const { return length() + SPARE; }

    // Takes row y of a tensor in, the vectors' lines `apart` floats, and has the machine look for the next row.
    void fetch(Part<const float> tensor, long y, float *lines, long apart) const {
        const float *from = row(tensor, y), *next = row(tensor, std::min(y + 1, shape.height - 1));
        for (long x = 0; x < shape.width; x++, from += tensor.step, next += tensor.step)
            for (long v = 0; v < count; v++) {
                put(lines + v * apart + x * LANES, get(from + channel[v]));
                __builtin_prefetch(next + channel[v]);
            }
    }

    void store(Part<float> tensor, long y, const float *lines, long apart) const {
        float *to = row(tensor, y);
        for (long x = 0; x < shape.width; x++, to += tensor.step)
            for (long v = 0; v < count; v++) put(to + channel[v], get(lines + v * apart + x * LANES));
    }
};

// Three neighbouring rows of each vector.
struct Rows {
    float *memory;
    long width;

    long apart() const { return 3 * width * LANES + SPARE; }
    long size() const { return BLOCK * apart(); }
    float *at(long v, long y) const { return memory + v * apart() + (y + 3) % 3 * width * LANES; }
    void clear(long v, long y) const { std::fill(at(v, y), at(v, y) + width * LANES, 0.f); }

    void fetch(const Block &block, Part<const float> tensor, long y) const {
        if (y < block.shape.height) return block.fetch(tensor, y, at(0, y), apart());
        for (long v = 0; v < block.count; v++) clear(v, y);
    }

    // Writes row y of the convolution with a kernel. Each column is read once; what it gives to the pixel on its left,
    // which is complete then, to its own and to the one on its right is under way in three sums.
    void convolve(long v, long y, const Vector kernel[9], float *line) const {
        const float *above = at(v, y - 1), *along = at(v, y), *below = at(v, y + 1);
        Vector weight[9];
        std::copy(kernel, kernel + 9, weight);
        Vector left{}, own{}, right;
        for (long x = 0; x < width * LANES; x += LANES) {
            const Vector a = get(above + x), b = get(along + x), c = get(below + x);
            left += weight[2] * a + weight[5] * b + weight[8] * c;
            own += weight[1] * a + weight[4] * b + weight[7] * c;
            right = weight[0] * a + weight[3] * b + weight[6] * c;
            if (x) put(line + x - LANES, left);
            left = own, own = right;
        }
        put(line + (width - 1) * LANES, left);
    }

    // Adds to `total`, the derivatives by a kernel, what row y of the input contributes with a line of the derivatives
    // by row y of the output. A pixel stays while three of these pass it; by the one on its left it was the right one.
    void correlate(long v, long y, const float *line, Vector total[9]) const {
        const float *rows[3] = {at(v, y - 1), at(v, y), at(v, y + 1)};
        Vector sum[9];
        std::copy(total, total + 9, sum);
        Vector left{}, here = get(line);
        for (long x = 0; x < width * LANES; x += LANES) {
            const Vector right = x + LANES < width * LANES ? get(line + x + LANES) : Vector{};
            for (int i = 0; i < 3; i++) {
                const Vector pixel = get(rows[i] + x);
                sum[3 * i] += right * pixel, sum[3 * i + 1] += here * pixel, sum[3 * i + 2] += left * pixel;
            }
            left = here, here = right;
        }
        std::copy(sum, sum + 9, total);
    }
};

// A task's own memory, given out in pieces that begin with a line of the cache.
class Scratch {
    std::unique_ptr<float[]> memory;
    void *free;
    size_t room;

  public:
    explicit Scratch(long floats)
        : memory(new float[floats + 8 * LANES]), free(memory.get()), room((floats + 8 * LANES) * sizeof(float)) {}

    float *take(long floats) {
        const size_t size = floats * sizeof(float);
        float *taken = static_cast<float *>(std::align(64, size, free, room));
        free = taken + floats, room -= size;
        return taken;
    }

    Rows rows(long width) {
        const Rows taken{take(Rows{nullptr, width}.size()), width};
        for (long v = 0; v < BLOCK; v++) taken.clear(v, -1);  // above the image
        return taken;
    }
};

// exp(x) for -87 <= x <= 0, and exp(-87) below: a power of two by its exponent, the rest by a polynomial (Cephes).
inline Vector exponential(Vector x) {
    x = x < -87.f ? Vector{} - 87.f : x;
    const Vector shifted = x * 1.44269504f + 12582912.f;  // 1.5 * 2^23: what is added to it is rounded to an integer
    const Vector power = shifted - 12582912.f;
    const Vector rest = x - power * 0.693359375f + power * 2.12194440e-4f;
    Vector sum = 1.9875691500e-4f * rest + 1.3981999507e-3f;
    for (float next : {8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f}) sum = sum * rest + next;
    return (Vector)(((Integers)shifted << 23) + (Integers)(sum * rest * rest + rest + 1.f));
}

// The normal distribution's share below x, to 1e-7 (Abramowitz and Stegun, 7.1.26), and exp(-x^2 / 2).
inline void normal(Vector x, Vector &below, Vector &bell) {
    bell = exponential(-0.5f * x * x);
    const Vector t = 1.f / (1.f + 0.23164189f * (x < 0.f ? -x : x));
    Vector tail = 0.5307027145f * t - 0.7265760135f;
    for (float next : {0.7107068705f, -0.142248368f, 0.127414796f}) tail = tail * t + next;
    tail *= t * bell;
    below = x < 0.f ? tail : 1.f - tail;
}

void load(const float *weight, long channel, Vector kernel[9]) {  // weight: (C, 3, 3)
    for (int lane = 0; lane < LANES; lane++)
        for (int k = 0; k < 9; k++) kernel[k][lane] = weight[9 * (channel + lane) + k];
}

// Calls a task for each block, in parallel; blocks are of one size but for one vector, so overlaps stay within them.
template <typename Task>
void each(const Shape &shape, int threads, Task task) {
    const long vectors = (shape.channels + LANES - 1) / LANES, blocks = (vectors + BLOCK - 1) / BLOCK;
#pragma omp parallel for collapse(2) num_threads(threads)
    for (long image = 0; image < shape.images; image++)
        for (long block = 0; block < blocks; block++) {
            const long first = block * vectors / blocks, last = (block + 1) * vectors / blocks;
            Block part{shape, image, last - first, {}};
            for (long v = first; v < last; v++) part.channel[v - first] = std::min(v * LANES, shape.channels - LANES);
            task(part);
        }
}

// The way back through `parts` convolutions side by side. `derive` writes a row of the derivatives by what they gave.
template <int parts, typename Derive>
void backward(const Shape &shape, const float *entering, const float *weight, float *for_entering, float *for_weight,
              int threads, Derive derive) {
    const long size = parts * shape.channels * 9;
    std::vector<float> shares(shape.images * size);  // of each image in for_weight, added up in one order
    const long step = parts * shape.channels;
    each(shape, threads, [&](const Block &block) {
        const long line = block.line();
        Scratch scratch(2 * parts * Rows{nullptr, shape.width}.size() + 2 * BLOCK * line);
        float *const lines[] = {scratch.take(BLOCK * line), scratch.take(BLOCK * line)};
        Rows in[parts], by[parts];  // what entered, and the derivatives by what left
        Vector kernels[parts][BLOCK][9], turned[parts][BLOCK][9], total[parts][BLOCK][9] = {};
        for (int part = 0; part < parts; part++) {
            in[part] = scratch.rows(shape.width);
            by[part] = scratch.rows(shape.width);
            in[part].fetch(block, {entering + part * shape.channels, step}, 0);
            for (long v = 0; v < block.count; v++) {
                load(weight + part * shape.channels * 9, block.channel[v], kernels[part][v]);
                std::reverse_copy(kernels[part][v], kernels[part][v] + 9, turned[part][v]);
            }
        }
        for (long y = 0; y <= shape.height; y++) {
            if (y < shape.height) {
                for (int part = 0; part < parts; part++)
                    in[part].fetch(block, {entering + part * shape.channels, step}, y + 1);
                derive(block, y, in, kernels, by, lines);
            }
            for (int part = 0; part < parts; part++) {
                for (long v = 0; v < block.count; v++) {
                    if (y < shape.height)
                        in[part].correlate(v, y, by[part].at(v, y), total[part][v]);
                    else
                        by[part].clear(v, y);
                    if (y > 0) by[part].convolve(v, y - 1, turned[part][v], lines[0] + v * line);
                }
                if (y > 0) block.store({for_entering + part * shape.channels, step}, y - 1, lines[0], line);
            }
        }
        for (int part = 0; part < parts; part++)
            for (long v = 0; v < block.count; v++)
                for (int lane = 0; lane < LANES; lane++)
                    for (int k = 0; k < 9; k++)
                        shares[block.image * size + (part * shape.channels + block.channel[v] + lane) * 9 + k] =
                            total[part][v][k][lane];
    });
    std::fill(for_weight, for_weight + size, 0.f);
    for (long image = 0; image < shape.images; image++)
        for (long place = 0; place < size; place++) for_weight[place] += shares[image * size + place];
}

}  // namespace

extern "C" {

long lanes() { return LANES; }

// out = depthwise(entering); squares: (B, C), the sums of its squares along the pixels
void depthwise(const float *entering, const float *weight, float *out, float *squares, long images, long height,
               long width, long channels, int threads) {
    each({images, height, width, channels}, threads, [&](const Block &block) {
        const long line = block.line();
        Scratch scratch(Rows{nullptr, width}.size() + BLOCK * line);
        const Rows in = scratch.rows(width);
        float *const lines = scratch.take(BLOCK * line);
        Vector kernels[BLOCK][9], sum[BLOCK] = {};
        for (long v = 0; v < block.count; v++) load(weight, block.channel[v], kernels[v]);
        in.fetch(block, {entering, channels}, 0);
        for (long y = 0; y < height; y++) {
            in.fetch(block, {entering, channels}, y + 1);
            for (long v = 0; v < block.count; v++) {
                in.convolve(v, y, kernels[v], lines + v * line);
                Vector row{};
                for (long x = 0; x < block.length(); x += LANES) {
                    const Vector left = get(lines + v * line + x);
                    row += left * left;
                }
                sum[v] += row;
            }
            block.store({out, channels}, y, lines, line);
        }
        for (long v = 0; v < block.count; v++) put(squares + block.image * channels + block.channel[v], sum[v]);
    });
}

// gradient and by_left * left, (B, C) times (B, H, W, C), together are the derivatives by what depthwise gave;
// for_entering may be gradient itself
void depthwise_backward(const float *entering, const float *weight, const float *gradient, const float *left,
                        const float *by_left, float *for_entering, float *for_weight, long images, long height,
                        long width, long channels, int threads) {
    const auto derive = [&](const Block &block, long y, const Rows *, const Vector (*)[BLOCK][9], const Rows *by,
                            float *const lines[2]) {
        const long line = block.line();
        block.fetch({gradient, channels}, y, lines[0], line);
        block.fetch({left, channels}, y, lines[1], line);
        for (long v = 0; v < block.count; v++) {
            const Vector factor = get(by_left + block.image * channels + block.channel[v]);
            for (long x = 0; x < block.length(); x += LANES)
                put(by->at(v, y) + x, get(lines[0] + v * line + x) + factor * get(lines[1] + v * line + x));
        }
    };
    backward<1>({images, height, width, channels}, entering, weight, for_entering, for_weight, threads, derive);
}

// product = gelu(depthwise(gate)) * depthwise(value); entering: (B, H, W, 2C), weight: (2C, 3, 3), the gate's first
void gated(const float *entering, const float *weight, float *product, long images, long height, long width,
           long channels, int threads) {
    each({images, height, width, channels}, threads, [&](const Block &block) {
        const long line = block.line();
        Scratch scratch(2 * Rows{nullptr, width}.size() + (BLOCK + 1) * line);
        float *const lines = scratch.take(BLOCK * line), *const passing = scratch.take(line);
        Rows in[2];
        Vector kernels[2][BLOCK][9];
        for (int part = 0; part < 2; part++) {
            in[part] = scratch.rows(width);
            in[part].fetch(block, {entering + part * channels, 2 * channels}, 0);
            for (long v = 0; v < block.count; v++)
                load(weight + part * channels * 9, block.channel[v], kernels[part][v]);
        }
        for (long y = 0; y < height; y++) {
            for (int part = 0; part < 2; part++)
                in[part].fetch(block, {entering + part * channels, 2 * channels}, y + 1);
            for (long v = 0; v < block.count; v++) {
                float *const opening = lines + v * line;
                in[0].convolve(v, y, kernels[0][v], opening);
                in[1].convolve(v, y, kernels[1][v], passing);
                for (long x = 0; x < block.length(); x += LANES) {
                    Vector below, bell;
                    normal(get(opening + x), below, bell);
                    put(opening + x, get(opening + x) * below * get(passing + x));
                }
            }
            block.store({product, channels}, y, lines, line);
        }
    });
}

// inner: derivatives by the product, which is computed again; product may be inner itself
void gated_backward(const float *entering, const float *weight, const float *inner, float *product, float *for_entering,
                    float *for_weight, long images, long height, long width, long channels, int threads) {
    const auto derive = [&](const Block &block, long y, const Rows *in, const Vector (*kernels)[BLOCK][9],
                            const Rows *by, float *const lines[2]) {
        const long line = block.line();
        block.fetch({inner, channels}, y, lines[0], line);
        for (long v = 0; v < block.count; v++) {
            for (int part = 0; part < 2; part++) in[part].convolve(v, y, kernels[part][v], by[part].at(v, y));
            for (long x = 0; x < block.length(); x += LANES) {
                float *const first = by[0].at(v, y) + x, *const second = by[1].at(v, y) + x;
                const Vector outer = get(lines[0] + v * line + x), opening = get(first), passing = get(second);
                Vector below, bell;
                normal(opening, below, bell);
                const Vector opened = opening * below, slope = below + opening * bell * 0.39894228f;  // 1 / sqrt(2 pi)
                put(lines[1] + v * line + x, opened * passing);
                put(first, outer * passing * slope);
                put(second, outer * opened);
            }
        }
        block.store({product, channels}, y, lines[1], line);
    };
    backward<2>({images, height, width, channels}, entering, weight, for_entering, for_weight, threads, derive);
}

// derivatives of LayerNorm by x, to which `past` is added, and by gain and bias; mean and spread, the inverse standard
// deviation: (B, H, W)
void norm_backward(const float *__restrict gradient, const float *__restrict x, const float *__restrict mean,
                   const float *__restrict spread, const float *__restrict gain, const float *__restrict past,
                   float *__restrict for_x, float *__restrict for_gain, float *__restrict for_bias, long images,
                   long height, long width, long channels, int threads) {
    std::vector<float> shares(images * 2 * channels);  // of each image in the sums, added up in one order
#pragma omp parallel for num_threads(threads)
    for (long image = 0; image < images; image++) {
        float *__restrict by_gain = shares.data() + image * 2 * channels, *__restrict by_bias = by_gain + channels;
        for (long pixel = image * height * width; pixel < (image + 1) * height * width; pixel++) {
            const float *by = gradient + pixel * channels, *from = x + pixel * channels;
            const float *around = past + pixel * channels;
            const float middle = mean[pixel], scale = spread[pixel];
            float sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
            for (long c = 0; c < channels; c++) {
                const float unit = (from[c] - middle) * scale;
                by_gain[c] += by[c] * unit;
                by_bias[c] += by[c];
                sum += by[c] * gain[c];
                along += by[c] * gain[c] * unit;
            }
            sum /= channels, along /= channels;
            float *__restrict to = for_x + pixel * channels;
            for (long c = 0; c < channels; c++)
                to[c] = (by[c] * gain[c] - sum - (from[c] - middle) * scale * along) * scale + around[c];
        }
    }
    std::fill(for_gain, for_gain + channels, 0.f);
    std::fill(for_bias, for_bias + channels, 0.f);
    for (long image = 0; image < images; image++)
        for (long c = 0; c < channels; c++) {
            for_gain[c] += shares[image * 2 * channels + c];
            for_bias[c] += shares[(image * 2 + 1) * channels + c];
        }
}
}
