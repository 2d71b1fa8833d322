/* Forward and backward pass of many copies of a small convolutional body, each on images of its own.

A body is a sequence of blocks; a block is a 3x3 convolution of stride 2 and padding 1 with bias, GroupNorm with gain
and shift, and ReLU. Images are square and have one channel. What makes it fast where a general library is not: one copy
and a few images at a time, so that all of it stays in the cache, and loops that keep their sums in registers.

Order in memory, last index fastest: activations [row, column, channel]; weights [tap, in, out] with the nine taps of a
3x3 window row by row; images of a copy after each other, and copies after them. Sums run over one channel per lane, so
the width of the machine's vectors changes no order of summation. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifndef WIDTH
#ifdef __AVX512F__
#define WIDTH 16
#else
#define WIDTH 8 /* two registers each where vectors are of 128 bits */
#endif
#endif
enum { TILE = 6, CHUNK = 4 };        /* pixels whose sums are in registers; images that are in the cache at once */
enum { NEAR = 64 };                  /* pixels that are in the nearest cache */
enum { BLOCKS = 8, CHANNELS = 1024 }; /* at most */

typedef float vector __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

typedef struct {
    int in, out, groups; /* channels, and groups of the normalization */
    int side, half;      /* of the images that come in, and of those that go out */
    int wide, rim;       /* `side` with zeros around, as far as windows reach; `half` with zeros below, to the right */
    const float *weight, *bias, *gain, *shift; /* of the first copy; the others follow */
    float eps;
} Block;

typedef struct { /* which products make an output: for every run, `length` inputs from `offset` on, times weights */
    int n, length, offset[4];
    const float *weight[4];
} Runs;

/* With constants for the last arguments: each kind gets a loop of its own, with its sums in registers. */
#define INLINE static inline __attribute__((always_inline))

INLINE void multiply_by(const float *in, const int *from, int n, const Runs *runs, int channels, const float *start,
                        float *out, const int *to, const int vectors) {
    for (int c = 0; c < channels; c += vectors * WIDTH)
        for (int m = 0; m < n; m += TILE) {
            vector sum[TILE][2];
            const float *pixel[TILE];
            for (int t = 0; t < TILE; t++) {
                pixel[t] = in + from[m + t < n ? m + t : n - 1]; /* beyond the last one: the last one again */
                for (int v = 0; v < vectors; v++) sum[t][v] = *(const vector *)(start + c + v * WIDTH);
            }
            for (int r = 0; r < runs->n; r++) {
                const float *weight = runs->weight[r] + c;
                const int begin = runs->offset[r], end = begin + runs->length;
                for (int j = begin; j < end; j++, weight += channels) {
                    vector w[2];
                    for (int v = 0; v < vectors; v++) w[v] = *(const vector *)(weight + v * WIDTH);
#pragma GCC unroll 6
                    for (int t = 0; t < TILE; t++)
                        for (int v = 0; v < vectors; v++) sum[t][v] += pixel[t][j] * w[v];
                }
            }
            for (int t = 0; t < TILE; t++)
                for (int v = 0; v < vectors; v++)
                    *(vector *)(out + to[m + t < n ? m + t : n - 1] + c + v * WIDTH) = sum[t][v];
        }
}

/* out[to[m] + c] = start[c] + the sum over runs of in[from[m] + offset + j] * weight[j][c], for n pixels m and all
channels c. */
static void multiply(const float *in, const int *from, int n, const Runs *runs, int channels, const float *start,
                     float *out, const int *to) {
    if (channels % (2 * WIDTH))
        multiply_by(in, from, n, runs, channels, start, out, to, 1);
    else
        multiply_by(in, from, n, runs, channels, start, out, to, 2);
}

INLINE void outer_by(const float *in, const int *from, const float *gradient, const int *at, int n, int rows,
                     int channels, float *total, int add, const int at_once, const int vectors) {
    for (int c = 0; c < channels; c += vectors * WIDTH)
        for (int j = 0; j < rows; j += at_once) {
            vector sum[TILE][2];
            float *where = total + j * channels + c;
            for (int t = 0; t < at_once; t++)
                for (int v = 0; v < vectors; v++)
                    sum[t][v] = add ? *(vector *)(where + t * channels + v * WIDTH) : (vector){0};
            for (int m = 0; m < n; m++) {
                const float *a = in + from[m] + j, *g = gradient + at[m] + c;
                vector b[2];
                for (int v = 0; v < vectors; v++) b[v] = *(const vector *)(g + v * WIDTH);
#pragma GCC unroll 6
                for (int t = 0; t < at_once; t++)
                    for (int v = 0; v < vectors; v++) sum[t][v] += a[t] * b[v];
            }
            for (int t = 0; t < at_once; t++)
                for (int v = 0; v < vectors; v++) *(vector *)(where + t * channels + v * WIDTH) = sum[t][v];
        }
}

/* total[j][c] = itself, if `add`, + the sum over n pixels m of in[from[m] + j] * gradient[at[m] + c], for all channels c
and `rows` inputs j, a multiple of three. */
static void outer(const float *in, const int *from, const float *gradient, const int *at, int n, int rows, int channels,
                  float *total, int add) {
    const int one = channels % (2 * WIDTH) != 0, three = rows % TILE != 0;
    if (three && one)
        outer_by(in, from, gradient, at, n, rows, channels, total, add, 3, 1);
    else if (three)
        outer_by(in, from, gradient, at, n, rows, channels, total, add, 3, 2);
    else if (one)
        outer_by(in, from, gradient, at, n, rows, channels, total, add, TILE, 1);
    else
        outer_by(in, from, gradient, at, n, rows, channels, total, add, TILE, 2);
}

/* x [pixels, channels] of one image -> normalized, in place; scale [groups]: what each group was multiplied with. */
static void normalize(const Block *b, float *restrict x, float *restrict scale) {
    const int n = b->half * b->half, c = b->out, per = c / b->groups;
    float sum[c], mean[c], factor[c];
    for (int pass = 0; pass < 2; pass++) { /* the mean, then the variance around it */
        memset(sum, 0, sizeof sum);
        for (int m = 0; m < n; m++)
            for (int k = 0; k < c; k++) {
                float d = pass ? x[m * c + k] - mean[k] : x[m * c + k];
                sum[k] += pass ? d * d : d;
            }
        for (int g = 0; g < b->groups; g++) {
            float all = 0;
            for (int k = g * per; k < (g + 1) * per; k++) all += sum[k];
            all /= n * per;
            if (pass) all = scale[g] = 1 / sqrtf(all + b->eps);
            for (int k = g * per; k < (g + 1) * per; k++) (pass ? factor : mean)[k] = all;
        }
    }
    for (int m = 0; m < n; m++)
        for (int k = 0; k < c; k++) x[m * c + k] = (x[m * c + k] - mean[k]) * factor[k];
}

/* ReLU of gain * x + shift, to where the next block takes its image from. */
static void activate(const Block *b, const float *restrict x, float *restrict next, int wide) {
    const float *gain = b->gain, *shift = b->shift;
    for (int row = 0; row < b->half; row++)
        for (int column = 0; column < b->half; column++, x += b->out) {
            float *to = next + ((row + 1) * wide + column + 1) * b->out;
            for (int k = 0; k < b->out; k++) {
                float y = gain[k] * x[k] + shift[k];
                to[k] = y > 0 ? y : 0;
            }
        }
}

/* d: gradient of what `activate` put out [pixels, channels]; that of the convolution's result goes to `to`, with a rim.
Adds to the gradients of gain, shift and the convolution's bias. */
static void normalize_backward(const Block *b, const float *restrict x, const float *scale, float *restrict d,
                               float *restrict to, float *restrict d_gain, float *restrict d_shift,
                               float *restrict d_bias) {
    const float *gain = b->gain, *shift = b->shift;
    const int n = b->half * b->half, c = b->out, per = c / b->groups;
    float sum[c], product[c], factor[c], bias[c];
    memset(sum, 0, sizeof sum), memset(product, 0, sizeof product), memset(bias, 0, sizeof bias);
    for (int m = 0; m < n; m++)
        for (int k = 0; k < c; k++) {
            float passed = gain[k] * x[m * c + k] + shift[k] > 0 ? d[m * c + k] : 0;
            d[m * c + k] = passed;
            sum[k] += passed;
            product[k] += passed * x[m * c + k];
        }
    for (int k = 0; k < c; k++) d_shift[k] += sum[k], d_gain[k] += product[k];
    for (int g = 0; g < b->groups; g++) {
        float s = 0, p = 0;
        for (int k = g * per; k < (g + 1) * per; k++) s += gain[k] * sum[k], p += gain[k] * product[k];
        for (int k = g * per; k < (g + 1) * per; k++)
            sum[k] = s / (n * per) * scale[g], product[k] = p / (n * per) * scale[g], factor[k] = gain[k] * scale[g];
    }
    for (int row = 0, m = 0; row < b->half; row++)
        for (int column = 0; column < b->half; column++, m++) {
            float *out = to + (row * b->rim + column) * c;
            for (int k = 0; k < c; k++) {
                float v = factor[k] * d[m * c + k] - sum[k] - product[k] * x[m * c + k];
                out[k] = v;
                bias[k] += v;
            }
        }
    for (int k = 0; k < c; k++) d_bias[k] += bias[k];
}

typedef struct { /* one pass: the blocks of the current copy, its buffers, and where pixels are in them */
    int blocks;
    Block block[BLOCKS];
    float *image[BLOCKS]; /* what each block takes, with zeros around */
    float *rimmed, *gradient, *result, *zeros;
    int *from[BLOCKS], *to[BLOCKS], *at[BLOCKS];
    void *memory[64];
    int n_memory;
} Pass;

static void *zeroed(Pass *p, size_t n) { return p->memory[p->n_memory++] = calloc(n + 64, sizeof(float)); }

static void start(Pass *p, int blocks, const int *shapes, const float *eps, const float *const *parameters) {
    p->blocks = blocks;
    p->n_memory = 0;
    size_t most = 0;
    for (int l = 0; l < blocks; l++) {
        Block *b = p->block + l;
        b->in = shapes[4 * l], b->out = shapes[4 * l + 1], b->groups = shapes[4 * l + 2], b->side = shapes[4 * l + 3];
        b->half = (b->side + 1) / 2, b->wide = 2 * b->half + 1, b->rim = b->half + 1, b->eps = eps[l];
        b->weight = parameters[4 * l], b->bias = parameters[4 * l + 1];
        b->gain = parameters[4 * l + 2], b->shift = parameters[4 * l + 3];
        const int n = b->half * b->half;
        p->image[l] = zeroed(p, (size_t)CHUNK * b->wide * b->wide * b->in);
        p->from[l] = zeroed(p, CHUNK * n), p->to[l] = zeroed(p, CHUNK * n), p->at[l] = zeroed(p, CHUNK * n);
        for (int m = 0; m < CHUNK * n; m++) {
            const int i = m / n, row = m % n / b->half, column = m % b->half;
            p->from[l][m] = ((i * b->wide + 2 * row) * b->wide + 2 * column) * b->in;
            p->to[l][m] = m * b->out;
            p->at[l][m] = ((i * b->rim + row) * b->rim + column) * b->out;
        }
        const size_t here = (size_t)CHUNK * b->rim * b->rim * b->out; /* the largest of what there is between blocks */
        most = here > most ? here : most;
    }
    p->rimmed = zeroed(p, most), p->gradient = zeroed(p, most), p->result = zeroed(p, most);
    p->zeros = zeroed(p, CHANNELS);
}

static void end(Pass *p) {
    while (p->n_memory) free(p->memory[--p->n_memory]);
}

static void next_copy(Pass *p) {
    for (int l = 0; l < p->blocks; l++) {
        Block *b = p->block + l;
        b->weight += 9 * b->in * b->out, b->bias += b->out, b->gain += b->out, b->shift += b->out;
    }
}

/* images: where the first one of this chunk is, `apart` floats from the next one. */
static void take(Pass *p, const float *images, long apart, int n) {
    const Block *b = p->block;
    for (int i = 0; i < n; i++)
        for (int row = 0; row < b->side; row++)
            memcpy(p->image[0] + (i * b->wide + row + 1) * b->wide + 1, images + i * apart + row * b->side,
                   b->side * sizeof(float));
}

/* x [images, copies, side, side], with these strides -> features [images, copies, out, half, half] of the last block.
normalized, scales: what `backward` needs, or NULL; of each block, [copies, images, pixels, out] and
[copies, images, groups]. */
void forward(int blocks, const int *shapes, const float *eps, const float *const *parameters, int copies, int images,
             const float *x, long image_stride, long copy_stride, float *const *normalized, float *const *scales,
             float *features) {
    Pass p;
    start(&p, blocks, shapes, eps, parameters);
    const Block *last = p.block + blocks - 1;
    const int n_last = last->half * last->half, n_features = last->out * n_last;
    float unused[CHUNK * CHANNELS];
    for (int s = 0; s < copies; s++, next_copy(&p))
        for (int i = 0; i < images; i += CHUNK) {
            const int n = images - i < CHUNK ? images - i : CHUNK;
            take(&p, x + i * image_stride + s * copy_stride, image_stride, n);
            for (int l = 0; l < blocks; l++) {
                const Block *b = p.block + l;
                const int pixels = b->half * b->half, row = b->wide * b->in, row_of_taps = b->in * b->out;
                const float *w = b->weight;
                const Runs runs = {3, 3 * b->in, {0, row, 2 * row}, {w, w + 3 * row_of_taps, w + 6 * row_of_taps}};
                const long place = (long)s * images + i;
                float *result = normalized ? normalized[l] + place * pixels * b->out : p.result;
                float *scale = scales ? scales[l] + place * b->groups : unused;
                multiply(p.image[l], p.from[l], n * pixels, &runs, b->out, b->bias, result, p.to[l]);
                for (int k = 0; k < n; k++) {
                    float *one = result + k * pixels * b->out;
                    normalize(b, one, scale + k * b->groups);
                    if (l + 1 < blocks) {
                        const int wide = b[1].wide;
                        activate(b, one, p.image[l + 1] + k * wide * wide * b->out, wide);
                    } else {
                        float *to = features + ((long)(i + k) * copies + s) * n_features;
                        for (int m = 0; m < n_last; m++)
                            for (int c = 0; c < b->out; c++) {
                                float y = b->gain[c] * one[m * b->out + c] + b->shift[c];
                                to[c * n_last + m] = y > 0 ? y : 0;
                            }
                    }
                }
            }
        }
    end(&p);
}

/* from [rows, columns] -> to [columns, rows]; both multiples of 8, in squares that stay in registers. */
static void turn(const float *restrict from, int rows, int columns, float *restrict to) {
    for (int i = 0; i < rows; i += 8)
        for (int o = 0; o < columns; o += 8)
            for (int k = 0; k < 8; k++)
                for (int j = 0; j < 8; j++) to[(o + k) * rows + i + j] = from[(i + j) * columns + o + k];
}

/* The gradient of a block's input [pixels, in] from that of its convolution, which lies in `rimmed`. An input pixel was
under one, two or four of the taps: by the parity of its row and column. */
static void input_gradient(Pass *p, const Block *b, const float *turned, int n) {
    int from[CHUNK * b->rim * b->rim], to[CHUNK * b->rim * b->rim];
    for (int odd_row = 0; odd_row < 2; odd_row++)
        for (int odd_column = 0; odd_column < 2; odd_column++) {
            Runs runs = {0, b->out, {0}, {0}};
            for (int row = odd_row ? 0 : 1; row < 3; row += 2)
                for (int column = odd_column ? 0 : 1; column < 3; column += 2) {
                    runs.offset[runs.n] = ((odd_row && !row) * b->rim + (odd_column && !column)) * b->out;
                    runs.weight[runs.n++] = turned + (3 * row + column) * b->in * b->out;
                }
            int count = 0;
            for (int i = 0; i < n; i++)
                for (int row = 0; 2 * row + odd_row < b->side; row++)
                    for (int column = 0; 2 * column + odd_column < b->side; column++, count++) {
                        from[count] = ((i * b->rim + row) * b->rim + column) * b->out;
                        to[count] = ((i * b->side + 2 * row + odd_row) * b->side + 2 * column + odd_column) * b->in;
                    }
            multiply(p->rimmed, from, count, &runs, b->in, p->zeros, p->gradient, to);
        }
}

/* gradients: in the order of `parameters`, of the sum of features * d_features. */
void backward(int blocks, const int *shapes, const float *eps, const float *const *parameters, int copies, int images,
              const float *x, long image_stride, long copy_stride, const float *const *normalized,
              const float *const *scales, const float *d_features, float *const *gradients) {
    Pass p;
    start(&p, blocks, shapes, eps, parameters);
    const Block *last = p.block + blocks - 1;
    const int n_last = last->half * last->half, n_features = last->out * n_last;
    float *turned[BLOCKS]; /* weights [tap, out, in] */
    for (int l = 1; l < blocks; l++) turned[l] = zeroed(&p, (size_t)9 * p.block[l].in * p.block[l].out);
    for (int s = 0; s < copies; s++, next_copy(&p)) {
        for (int l = 0; l < blocks; l++) {
            const Block *b = p.block + l;
            for (int k = 1; k < 4; k++) memset(gradients[4 * l + k] + s * b->out, 0, b->out * sizeof(float));
            for (int tap = 0; l && tap < 9; tap++)
                turn(b->weight + tap * b->in * b->out, b->in, b->out, turned[l] + tap * b->in * b->out);
        }
        for (int i = 0; i < images; i += CHUNK) {
            const int n = images - i < CHUNK ? images - i : CHUNK;
            const long place = (long)s * images + i;
            take(&p, x + i * image_stride + s * copy_stride, image_stride, n);
            for (int l = 0; l + 1 < blocks; l++) { /* what came in, once more: cheaper than kept */
                const Block *b = p.block + l;
                const int size = b->half * b->half * b->out, wide = b[1].wide;
                for (int k = 0; k < n; k++)
                    activate(b, normalized[l] + (place + k) * size, p.image[l + 1] + k * wide * wide * b->out, wide);
            }
            for (int k = 0; k < n; k++)
                for (int m = 0; m < n_last; m++)
                    for (int c = 0; c < last->out; c++)
                        p.gradient[(k * n_last + m) * last->out + c] =
                            d_features[((long)(i + k) * copies + s) * n_features + c * n_last + m];
            for (int l = blocks - 1; l >= 0; l--) {
                const Block *b = p.block + l;
                const int pixels = b->half * b->half, rimmed = b->rim * b->rim * b->out;
                float *const *d = gradients + 4 * l;
                memset(p.rimmed, 0, (size_t)n * rimmed * sizeof(float));
                for (int k = 0; k < n; k++)
                    normalize_backward(b, normalized[l] + (place + k) * pixels * b->out,
                                       scales[l] + (place + k) * b->groups, p.gradient + k * pixels * b->out,
                                       p.rimmed + k * rimmed, d[2] + s * b->out, d[3] + s * b->out, d[1] + s * b->out);
                const int at_once = NEAR / pixels > 1 ? NEAR / pixels : 1;
                for (int k = 0; k < n; k += at_once)
                    for (int tap = 0; tap < 3; tap++)
                        outer(p.image[l] + tap * b->wide * b->in, p.from[l] + k * pixels, p.rimmed,
                              p.at[l] + k * pixels, (n - k < at_once ? n - k : at_once) * pixels, 3 * b->in, b->out,
                              d[0] + ((long)s * 9 + 3 * tap) * b->in * b->out, i + k > 0);
                if (l) input_gradient(&p, b, turned[l], n);
            }
        }
    }
    end(&p);
}

/* Channels per vector, and the checksum of this file as it was compiled. */
int width(void) { return WIDTH; }
unsigned source(void) { return SOURCE; }
