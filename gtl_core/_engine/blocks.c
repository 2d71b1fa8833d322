/* Forward and backward pass of many copies of a small convolutional body, each on its own images; and their training.

A body is a sequence of blocks; a block is a 3x3 convolution of stride 2 and padding 1 with bias, GroupNorm with gain
and shift, and ReLU. Images are square and have one channel. What makes it fast where a general library is not: one copy
and a few images at a time, so that all of it stays in the cache, and loops that keep their sums in registers.

Order in memory as in vectors.h; images of a copy after each other, and copies after them. The width of the machine's
vectors changes no order of summation but that of the head (`dot`). */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "vectors.h"

typedef struct {
    int in, out, groups; /* channels, and groups of the normalization */
    int side, half;      /* of the images that come in, and of those that go out */
    int wide, rim;       /* `side` with zeros around, as far as windows reach; `half` with zeros below, to the right */
    const float *weight, *bias, *gain, *shift; /* of the first copy; the others follow */
    float eps;
} Block;

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

/* ReLU of gain * x + shift, to where the next block takes its image from; what is not a number stays none. */
static void activate(const Block *b, const float *restrict x, float *restrict next, int wide) {
    const float *gain = b->gain, *shift = b->shift;
    for (int row = 0; row < b->half; row++)
        for (int column = 0; column < b->half; column++, x += b->out) {
            float *to = next + ((row + 1) * wide + column + 1) * b->out;
            for (int k = 0; k < b->out; k++) {
                float y = gain[k] * x[k] + shift[k];
                to[k] = y < 0 ? 0 : y;
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
            float passed = gain[k] * x[m * c + k] + shift[k] <= 0 ? 0 : d[m * c + k];
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
    float *turned[BLOCKS]; /* its weights [tap, out, in] */
    float *normalized[BLOCKS], *scales[BLOCKS]; /* of a chunk: in buffers, or where `keep` says */
    float *rimmed, *gradient, *zeros;
    long sizes[4 * BLOCKS + 2], features; /* of a copy's parameters; how many features there are */
    int *from[BLOCKS], *to[BLOCKS], *at[BLOCKS];
    void *memory[128];
    int n_memory;
} Pass;

static void *zeroed(Pass *p, size_t n) { return p->memory[p->n_memory++] = calloc(n + 64, sizeof(float)); }

static void start(Pass *p, int blocks, const int *shapes, const float *eps, float *const *parameters) {
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
        p->turned[l] = zeroed(p, (size_t)9 * b->in * b->out);
        p->normalized[l] = zeroed(p, (size_t)CHUNK * n * b->out), p->scales[l] = zeroed(p, CHUNK * b->groups);
        p->sizes[4 * l] = 9 * b->in * b->out;
        for (int k = 1; k < 4; k++) p->sizes[4 * l + k] = b->out;
        p->features = n * b->out; /* of the last one */
        const size_t here = (size_t)CHUNK * b->rim * b->rim * b->out; /* the largest of what there is between blocks */
        most = here > most ? here : most;
    }
    p->rimmed = zeroed(p, most), p->gradient = zeroed(p, most);
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

/* What `take` took -> features [n, out, half, half] of the last block, `apart` floats from one image to the next.
`backward_of` needs what stays in `normalized` [n, pixels, out] and `scales` [n, groups] of each block. */
static void forward_of(Pass *p, int n, float *features, long apart) {
    for (int l = 0; l < p->blocks; l++) {
        const Block *b = p->block + l;
        const int pixels = b->half * b->half, row = b->wide * b->in, row_of_taps = b->in * b->out;
        const float *w = b->weight;
        const Runs runs = {3, 3 * b->in, {0, row, 2 * row}, {w, w + 3 * row_of_taps, w + 6 * row_of_taps}};
        multiply(p->image[l], p->from[l], n * pixels, &runs, b->out, b->bias, p->normalized[l], p->to[l]);
        for (int k = 0; k < n; k++) {
            float *one = p->normalized[l] + k * pixels * b->out;
            normalize(b, one, p->scales[l] + k * b->groups);
            if (l + 1 < p->blocks) {
                const int wide = b[1].wide;
                activate(b, one, p->image[l + 1] + k * wide * wide * b->out, wide);
                continue;
            }
            for (int m = 0; m < pixels; m++)
                for (int c = 0; c < b->out; c++) {
                    float y = b->gain[c] * one[m * b->out + c] + b->shift[c];
                    features[k * apart + c * pixels + m] = y < 0 ? 0 : y;
                }
        }
    }
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

/* What the way back needs of the current copy's weights. */
static void turn_weights(Pass *p) {
    for (int l = 1; l < p->blocks; l++) {
        const Block *b = p->block + l;
        for (int tap = 0; tap < 9; tap++)
            turn(b->weight + tap * b->in * b->out, b->in, b->out, p->turned[l] + tap * b->in * b->out);
    }
}

/* The gradients d of the current copy, in the order of parameters, from those of its features; added to what is there,
if `add`. Every block's input is in `image`, as `forward_of` left it there. */
static void backward_of(Pass *p, int n, const float *d_features, long apart, float *const *d, int add) {
    const Block *last = p->block + p->blocks - 1;
    const int n_last = last->half * last->half;
    for (int k = 0; k < n; k++)
        for (int m = 0; m < n_last; m++)
            for (int c = 0; c < last->out; c++)
                p->gradient[(k * n_last + m) * last->out + c] = d_features[k * apart + c * n_last + m];
    for (int l = p->blocks - 1; l >= 0; l--) {
        const Block *b = p->block + l;
        const int pixels = b->half * b->half, rimmed = b->rim * b->rim * b->out;
        float *const *of_block = d + 4 * l;
        for (int k = 1; !add && k < 4; k++) memset(of_block[k], 0, b->out * sizeof(float));
        memset(p->rimmed, 0, (size_t)n * rimmed * sizeof(float));
        for (int k = 0; k < n; k++)
            normalize_backward(b, p->normalized[l] + k * pixels * b->out, p->scales[l] + k * b->groups,
                               p->gradient + k * pixels * b->out, p->rimmed + k * rimmed, of_block[2], of_block[3],
                               of_block[1]);
        const int at_once = NEAR / pixels > 1 ? NEAR / pixels : 1;
        for (int k = 0; k < n; k += at_once)
            for (int tap = 0; tap < 3; tap++)
                outer(p->image[l] + tap * b->wide * b->in, p->from[l] + k * pixels, p->rimmed, p->at[l] + k * pixels,
                      (n - k < at_once ? n - k : at_once) * pixels, 3 * b->in, b->out,
                      of_block[0] + 3 * tap * b->in * b->out, add || k);
        if (l) input_gradient(p, b, p->turned[l], n);
    }
}

/* The chunk from number `place` of [copies, images] on has its values in what is kept for all of them. */
static void keep(Pass *p, float *const *normalized, float *const *scales, long place) {
    for (int l = 0; l < p->blocks; l++) {
        const Block *b = p->block + l;
        p->normalized[l] = normalized[l] + place * b->half * b->half * b->out;
        p->scales[l] = scales[l] + place * b->groups;
    }
}

/* x [images, copies, side, side], with these strides -> features [images, copies, out, half, half] of the last block.
normalized, scales: what `backward` needs, or NULL; of each block, [copies, images, pixels, out] and
[copies, images, groups]. */
void forward(int blocks, const int *shapes, const float *eps, float *const *parameters, int copies, int images,
             const float *x, long image_stride, long copy_stride, float *const *normalized, float *const *scales,
             float *features) {
    Pass p;
    start(&p, blocks, shapes, eps, parameters);
    for (int s = 0; s < copies; s++, next_copy(&p))
        for (int i = 0; i < images; i += CHUNK) {
            const int n = images - i < CHUNK ? images - i : CHUNK;
            take(&p, x + i * image_stride + s * copy_stride, image_stride, n);
            if (normalized) keep(&p, normalized, scales, (long)s * images + i);
            forward_of(&p, n, features + ((long)i * copies + s) * p.features, (long)copies * p.features);
        }
    end(&p);
}

/* gradients: in the order of `parameters`, of the sum of features * d_features. */
void backward(int blocks, const int *shapes, const float *eps, float *const *parameters, int copies, int images,
              const float *x, long image_stride, long copy_stride, float *const *normalized, float *const *scales,
              const float *d_features, float *const *gradients) {
    Pass p;
    start(&p, blocks, shapes, eps, parameters);
    float *d[4 * BLOCKS];
    for (int k = 0; k < 4 * blocks; k++) d[k] = gradients[k];
    for (int s = 0; s < copies; s++, next_copy(&p)) {
        turn_weights(&p);
        for (int i = 0; i < images; i += CHUNK) {
            const int n = images - i < CHUNK ? images - i : CHUNK;
            take(&p, x + i * image_stride + s * copy_stride, image_stride, n);
            keep(&p, normalized, scales, (long)s * images + i);
            for (int l = 0; l + 1 < blocks; l++) { /* what came in, once more: cheaper than kept */
                const Block *b = p.block + l;
                for (int k = 0; k < n; k++)
                    activate(b, p.normalized[l] + k * b->half * b->half * b->out,
                             p.image[l + 1] + k * b[1].wide * b[1].wide * b->out, b[1].wide);
            }
            backward_of(&p, n, d_features + ((long)i * copies + s) * p.features, (long)copies * p.features, d, i > 0);
        }
        for (int k = 0; k < 4 * blocks; k++) d[k] += p.sizes[k];
    }
    end(&p);
}

/* How an optimizer steps, as torch defines it: descent, with momentum if there is a place for it, or Adam. */
typedef struct {
    int adam, decoupled; /* weight decay: of the parameters themselves, or in the gradient */
    long steps;          /* made before */
    double rate, first, second, eps, decay;
} Rule;

/* p <- lerp(p, after, g), where `after` is the rule's step number t; g = 1 without a guide. */
INLINE void update_by(const Rule *r, long t, long n, float *restrict p, const float *restrict d, float *restrict first,
                      float *restrict second, const float *restrict guide, const int adam, const int momentum,
                      const int guided) {
    const float rate = adam ? r->rate / (1 - pow(r->first, t)) : r->rate, root = sqrt(1 - pow(r->second, t));
    const float in_gradient = r->decoupled ? 0 : r->decay, kept = r->decoupled ? 1 - r->rate * r->decay : 1;
    const float old = r->first, new = 1 - r->first, old_square = r->second, new_square = 1 - r->second, eps = r->eps;
    for (long i = 0; i < n; i++) {
        float g = d[i] + in_gradient * p[i], after;
        if (adam) {
            first[i] += (g - first[i]) * new;
            second[i] = second[i] * old_square + g * g * new_square;
            after = p[i] * kept - rate * first[i] / (sqrtf(second[i]) / root + eps);
        } else {
            if (momentum) g = first[i] = first[i] * old + g;
            after = p[i] - rate * g;
        }
        if (guided) {
            const float way = after - p[i], share = guide[i];
            after = share < 0.5f ? p[i] + share * way : after - way * (1 - share); /* exact at both ends */
        }
        p[i] = after;
    }
}

static void update(const Rule *r, long t, long n, float *p, const float *d, float *first, float *second,
                   const float *guide) {
    if (r->adam && guide)
        update_by(r, t, n, p, d, first, second, guide, 1, 0, 1);
    else if (r->adam)
        update_by(r, t, n, p, d, first, second, guide, 1, 0, 0);
    else if (first && guide)
        update_by(r, t, n, p, d, first, second, guide, 0, 1, 1);
    else if (first)
        update_by(r, t, n, p, d, first, second, guide, 0, 1, 0);
    else if (guide)
        update_by(r, t, n, p, d, first, second, guide, 0, 0, 1);
    else
        update_by(r, t, n, p, d, first, second, guide, 0, 0, 0);
}

static float dot(const float *a, const float *b, int n) {
    vector sum = {0};
    for (int i = 0; i < n; i += WIDTH) sum += *(const vector *)(a + i) * *(const vector *)(b + i);
    float all = 0;
    for (int i = 0; i < WIDTH; i++) all += sum[i];
    return all;
}

/* The head [ways, features] and its bias: from features to their gradient, in place, for the mean cross-entropy over
`images`; adds to the gradients of both. */
static void head_of(int n, int images, int ways, int features, const float *weight, const float *bias, float *x,
                    const long long *labels, long label_stride, float *d_weight, float *d_bias) {
    float logits[ways], d_x[features];
    for (int k = 0; k < n; k++, x += features, labels += label_stride) {
        float most = -INFINITY, sum = 0;
        for (int j = 0; j < ways; j++) {
            logits[j] = bias[j] + dot(weight + j * features, x, features);
            most = logits[j] > most ? logits[j] : most;
        }
        for (int j = 0; j < ways; j++) sum += logits[j] = expf(logits[j] - most);
        memset(d_x, 0, sizeof d_x);
        for (int j = 0; j < ways; j++) {
            const float d = (logits[j] / sum - (j == *labels)) / images;
            d_bias[j] += d;
            for (int f = 0; f < features; f++) {
                d_weight[j * features + f] += d * x[f];
                d_x[f] += d * weight[j * features + f];
            }
        }
        memcpy(x, d_x, sizeof d_x);
    }
}

/* All steps of training on all images at once, of one copy after the other: while a copy learns, it stays in the cache.
parameters: those of the blocks, then weight [copies, ways, features] and bias of the head; they change in place.
labels [images, copies], with these strides. first, second: what the rule keeps for each parameter, or NULL for all.
guide: of each parameter, or NULL where g = 1. */
void fit(int blocks, const int *shapes, const float *eps, float *const *parameters, int copies, int images,
         const float *x, long image_stride, long copy_stride, const long long *labels, long label_image_stride,
         long label_copy_stride, int ways, int steps, const Rule *rule, float *const *first, float *const *second,
         const float *const *guide) {
    Pass p;
    start(&p, blocks, shapes, eps, parameters);
    const int n_parameters = 4 * blocks + 2;
    p.sizes[n_parameters - 2] = (long)ways * p.features, p.sizes[n_parameters - 1] = ways;
    float *d[4 * BLOCKS + 2], *features = zeroed(&p, (size_t)CHUNK * p.features);
    for (int k = 0; k < n_parameters; k++) d[k] = zeroed(&p, p.sizes[k]);
    for (int s = 0; s < copies; s++, next_copy(&p))
        for (int step = 0; step < steps; step++) {
            turn_weights(&p);
            float *weight = parameters[n_parameters - 2] + s * p.sizes[n_parameters - 2];
            float *bias = parameters[n_parameters - 1] + (long)s * ways;
            memset(d[n_parameters - 2], 0, p.sizes[n_parameters - 2] * sizeof(float));
            memset(d[n_parameters - 1], 0, ways * sizeof(float));
            for (int i = 0; i < images; i += CHUNK) {
                const int n = images - i < CHUNK ? images - i : CHUNK;
                take(&p, x + i * image_stride + s * copy_stride, image_stride, n);
                forward_of(&p, n, features, p.features);
                head_of(n, images, ways, p.features, weight, bias, features,
                        labels + i * label_image_stride + s * label_copy_stride, label_image_stride,
                        d[n_parameters - 2], d[n_parameters - 1]);
                backward_of(&p, n, features, p.features, d, i > 0);
            }
            for (int k = 0; k < n_parameters; k++) {
                const long at = s * p.sizes[k];
                update(rule, rule->steps + step + 1, p.sizes[k], parameters[k] + at, d[k], first ? first[k] + at : NULL,
                       second ? second[k] + at : NULL, guide && guide[k] ? guide[k] + at : NULL);
            }
        }
    end(&p);
}

/* Channels per vector, images of a chunk, and the checksum of all files of C as they were compiled. */
int width(void) { return WIDTH; }
int chunk(void) { return CHUNK; }
unsigned source(void) { return SOURCE; }
