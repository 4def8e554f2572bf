#include "program.hpp"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "pool.hpp"

namespace matexport {
namespace {

constexpr int64_t least_group_tokens = 32, group_tokens = 128;  // that one thread takes at a time: what they need stays in its cache
constexpr int64_t block_rows = 128;    // of which wide matrices are held at once
constexpr int64_t align = 64;          // bytes
constexpr int64_t huge_page = 2 << 20, largest_arena = 1 << 30;
constexpr int64_t largest_inner = 1 << 16;  // 255 * 127 * 65536 < 2^31
constexpr int64_t largest_width = 1 << 20, largest_count = int64_t(1) << 40;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

void* allocate(int64_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, align, (size_t)round_up(std::max<int64_t>(bytes, 1), align))) throw std::bad_alloc();
  return memory;
}

// Weights are read from end to end for every few tokens, so pages are asked for that are as large as can be.
void* allocate_weights(int64_t bytes) {
  void* memory = nullptr;
  bytes = round_up(std::max<int64_t>(bytes, 1), huge_page);
  if (posix_memalign(&memory, huge_page, (size_t)bytes)) throw std::bad_alloc();
#if defined(__linux__)
  madvise(memory, (size_t)bytes, MADV_HUGEPAGE);  // where it is refused, pages stay small
#endif
  return memory;
}

void expect(const Span& span, int64_t count, const char* what) {
  if (span.data == nullptr || span.count != count) refuse(std::string(what) + " is not as long as its step needs");
}

const float* optional(const Span& span, int64_t count, const char* what) {
  if (span.data == nullptr) return nullptr;
  expect(span, count, what);
  return (const float*)span.data;
}

}  // namespace

struct Program::Workspace {
  int64_t rows = 0, texts = 0, scratch_floats = 0;  // that there is room for
  std::vector<void*> slots;
  std::vector<float*> scratch;  // of each member
  ~Workspace() {
    for (void* memory : slots) free(memory);
    for (float* memory : scratch) free(memory);
  }
};

struct Program::Team {
  Barrier barrier;
  const int members;
  Workspace& workspace;
  int64_t first_text = 0, last_text = 0, first_token = 0, tokens = 0;
  const int64_t* text_of = nullptr;  // of each token of the batch

  Team(int count, Workspace& space) : barrier(count), members(count), workspace(space) {}
};

Program::Matrix& Program::need(int matrix, const char* what, bool codes) {
  if (matrix < 0 || matrix >= (int)matrices_.size() || !matrices_[matrix].known) {
    refuse(std::string(what) + " reads a matrix that was not made");
  }
  if (matrices_[matrix].codes != codes) refuse(std::string(what) + " reads a matrix of another kind");
  return matrices_[matrix];
}

Program::Matrix& Program::make(int matrix, int64_t width, bool texts, bool codes) {
  if (matrix < 0 || matrix >= (int)matrices_.size() || matrices_[matrix].known) refuse("a matrix is made twice");
  if (width < 1 || width > largest_width) refuse("a matrix has an impossible width");
  Matrix& made = matrices_[matrix];
  made.width = width;
  made.stride = round_up(width, align);
  made.texts = texts;
  made.codes = codes;
  made.known = true;
  widest_ = std::max(widest_, made.stride);
  return made;
}

Program::Program(const Kernels& kernels, const StepRecord* steps, int64_t step_count, const TableRecord* tables,
                 int64_t table_count, const int32_t* outputs, int64_t output_count)
    : kernels_(kernels), tables_(tables, tables + table_count), outputs_(outputs, outputs + output_count) {
  matrices_.resize((size_t)step_count);
  for (int64_t i = 0; i < step_count; i++) {  // about what all weights need, in one piece
    if (steps[i].op != (int32_t)Op::product && steps[i].op != (int32_t)Op::dense) continue;
    const int64_t count = std::clamp<int64_t>(steps[i].arrays[0].count, 0, largest_count);
    arena_bytes_ += (steps[i].op == (int32_t)Op::dense ? 4 : 1) * count + 16 * std::max(steps[i].numbers[0], 0) + 4 * align;
  }
  arena_bytes_ = std::min(arena_bytes_, largest_arena);
  steps_.reserve((size_t)step_count);
  try {
    for (int64_t i = 0; i < step_count; i++) read_step(steps[i], tables, table_count);
    for (int output : outputs_) {
      if (!need(output, "an output").texts) refuse("an output has a row per token");
    }
    if (outputs_.empty()) refuse("there is no output");
    make_stages();
    lay_out();
  } catch (...) {
    for (void* memory : owned_) free(memory);
    throw;
  }
}

Program::~Program() {
  for (void* memory : owned_) free(memory);
}

void* Program::reserve(int64_t bytes) {
  bytes = round_up(bytes, align);
  if (left_ < bytes) {
    left_ = std::max(bytes, arena_bytes_);
    next_ = (char*)allocate_weights(left_);
    owned_.push_back(next_);
  }
  char* taken = next_;
  next_ += bytes;
  left_ -= bytes;
  return taken;
}

void Program::read_step(const StepRecord& record, const TableRecord* tables, int64_t table_count) {
  Step step;
  if (record.op < 0 || record.op > (int32_t)Op::unit) refuse("a step is of no known kind");
  step.op = (Op)record.op;
  step.out = record.out;
  step.a = record.sources[0];
  step.b = record.sources[1];
  step.c = record.sources[2];
  memcpy(step.n, record.numbers, sizeof step.n);
  memcpy(step.f, record.reals, sizeof step.f);
  const Span* arrays = record.arrays;
  switch (step.op) {
    case Op::embed: {
      step.first_table = step.n[0];
      step.table_count = step.n[1];
      const int64_t width = step.n[2];
      if (step.first_table < 0 || step.table_count < 1 || step.table_count > 8 ||
          step.first_table + (int64_t)step.table_count > table_count) {
        refuse("embed names tables that are not there");
      }
      make(step.out, width, false);
      for (int t = step.first_table; t < step.first_table + step.table_count; t++) {
        const TableRecord& table = tables[t];
        if (table.count < 1 || table.count > largest_count / width) refuse("a table has an impossible size");
        expect(table.rows, table.count * width, "a table");
        if (table.scales.data != nullptr) expect(table.scales, table.count, "scales of a table");
        if (table.index < 0 || table.index > (int32_t)Index::order) refuse("a table has an unknown index");
        if (table.shift < (table.uncounted >= 0) || table.shift >= table.count) refuse("a table has a shift that leads before its first row");
      }
      break;
    }
    case Op::norm:
    case Op::head_norm: {
      const Matrix source = need(step.a, "norm");
      const int64_t heads = step.op == Op::norm ? 1 : step.n[1];
      if (heads < 1 || source.width % heads) refuse("norm has heads that do not divide its width");
      expect(arrays[0], source.width / heads, "the weight of a norm");
      step.weight = (const float*)arrays[0].data;
      step.bias = optional(arrays[1], source.width / heads, "the bias of a norm");
      make(step.out, source.width, source.texts);
      break;
    }
    case Op::add:
    case Op::multiply: {
      const Matrix left = need(step.a, "a sum or product"), right = need(step.b, "a sum or product");
      if (left.width != right.width || left.texts != right.texts) refuse("a sum or product is of unequal matrices");
      make(step.out, left.width, left.texts);
      break;
    }
    case Op::affine: {
      const Matrix source = need(step.a, "affine");
      step.weight = optional(arrays[0], source.width, "the weight of affine");
      step.bias = optional(arrays[1], source.width, "the bias of affine");
      make(step.out, source.width, source.texts);
      break;
    }
    case Op::activate: {
      const Matrix source = need(step.a, "activate");
      if (step.n[0] < 0 || step.n[0] > (int32_t)Function::sigmoid) refuse("activate has an unknown function");
      step.function = (Function)step.n[0];
      make(step.out, source.width, source.texts);
      break;
    }
    case Op::columns: {
      const Matrix source = need(step.a, "columns");
      const int64_t first = step.n[0], count = step.n[1];
      if (first < 0 || count < 1 || first + count > source.width) refuse("columns reach beyond their matrix");
      make(step.out, count, source.texts);
      break;
    }
    case Op::quantize: {
      const Matrix source = need(step.a, "quantize");
      Quantizer& q = step.quantizer;
      q.smoothing = optional(arrays[0], source.width, "the smoothing of quantize");
      q.zero = step.n[0];
      q.levels = (float)step.n[1];
      q.bounded = step.n[2] != 0;
      q.least = step.f[0];
      if (q.zero < 0 || q.zero > 255 || step.n[1] < 1 || step.n[1] > 255 || !(q.least >= 0) || !isfinite(q.least)) {
        refuse("quantize has impossible codes");
      }
      q.shift = kernels_.shift_of(q.zero);
      Matrix& made = make(step.out, source.width, source.texts, true);
      made.stride = round_up(source.width, align);
      break;
    }
    case Op::product: {
      const Matrix source = need(step.a, "product", true);
      const int64_t inner = source.width, columns = step.n[0];
      if (columns < 1 || columns > largest_width) refuse("a product has an impossible width");
      if (inner > largest_inner) refuse("a product of integers adds up more than 32 bits hold");
      expect(arrays[0], inner * columns, "the weight of a product");
      expect(arrays[1], columns, "the scales of a product");
      const float* bias = optional(arrays[2], columns, "the bias of a product");
      const Quantizer* q = nullptr;
      for (const Step& other : steps_) {
        if (other.out == step.a) q = &other.quantizer;
      }
      PackedProduct& w = step.product;
      w.inner = inner;
      w.columns = columns;
      w.inner_padded = round_up(inner, kernels_.inner_step);
      w.panels = (columns + kernels_.panel - 1) / kernels_.panel;
      w.zero = q->zero;
      w.shift = q->shift;
      const int64_t panel = kernels_.panel, width = w.panels * panel, k_step = kernels_.inner_step;
      w.codes = (int8_t*)reserve(width * w.inner_padded);
      w.start = (int32_t*)reserve(width * 4);
      w.scales = (float*)reserve(width * 4);
      w.bias = (float*)reserve(width * 4);
      const int8_t* weight = (const int8_t*)arrays[0].data;
      const float* scales = (const float*)arrays[1].data;
      for (int64_t n = 0; n < width; n++) {
        w.start[n] = 0;
        w.scales[n] = n < columns ? scales[n] / q->levels : 0;
        w.bias[n] = n < columns && bias ? bias[n] : 0;
      }
      memset(w.codes, 0, (size_t)(width * w.inner_padded));
      for (int64_t k = 0; k < inner; k++) {
        const int8_t* row = weight + k * columns;
        int8_t* block = w.codes + k / k_step * k_step * panel + k % k_step;
        for (int64_t p = 0; p < w.panels; p++) {
          int8_t* out = block + p * w.inner_padded * panel;
          const int64_t first = p * panel, count = std::min(panel, columns - first);
          for (int64_t n = 0; n < count; n++) out[n * k_step] = row[first + n];
        }
        for (int64_t n = 0; n < columns; n++) w.start[n] += row[n];
        if (k % 2) {
          for (int64_t n = 0; n < columns; n++) w.wide_pairs |= abs(row[n]) + abs(row[n - columns]) > 128;
        }
      }
      for (int64_t n = 0; n < width; n++) w.start[n] *= q->shift - q->zero;
      make(step.out, columns, source.texts);
      break;
    }
    case Op::dense: {
      const Matrix source = need(step.a, "dense");
      const int64_t inner = source.width, columns = step.n[0], panel = kernels_.dense_panel;
      if (columns < 1 || columns > largest_width) refuse("a product has an impossible width");
      expect(arrays[0], inner * columns, "the weight of a product");
      const float* bias = optional(arrays[1], columns, "the bias of a product");
      PackedDense& w = step.dense;
      w.inner = inner;
      w.columns = columns;
      w.panels = (columns + panel - 1) / panel;
      w.values = (float*)reserve(w.panels * panel * inner * 4);
      w.bias = (float*)reserve(w.panels * panel * 4);
      const float* weight = (const float*)arrays[0].data;
      for (int64_t p = 0; p < w.panels; p++) {
        for (int64_t n = 0; n < panel; n++) {
          const int64_t column = p * panel + n;
          w.bias[column] = column < columns && bias ? bias[column] : 0;
          for (int64_t k = 0; k < inner; k++) {
            w.values[(p * inner + k) * panel + n] = column < columns ? weight[k * columns + column] : 0;
          }
        }
      }
      make(step.out, columns, source.texts);
      break;
    }
    case Op::rotate: {
      const Matrix source = need(step.a, "rotate");
      const int64_t heads = step.n[0], count = step.n[1], positions = step.n[3];
      if (source.texts || heads < 1 || source.width % heads) refuse("rotate has heads that do not divide its width");
      if (count < 1 || 2 * count > source.width / heads) refuse("rotate has more angles than columns");
      if (positions < 1 || positions > (1 << 20) || step.n[4] < (int)Index::columns || step.n[4] > (int)Index::order) {
        refuse("rotate has impossible positions");
      }
      expect(arrays[0], count, "the frequencies of rotate");
      const float* frequencies = (const float*)arrays[0].data;
      for (const Step& other : steps_) {  // all blocks turn alike, mostly
        if (other.angles && other.f[0] == step.f[0] && other.n[3] == step.n[3] &&
            other.angles->frequencies == std::vector<float>(frequencies, frequencies + count)) {
          step.angles = other.angles;
          break;
        }
      }
      if (!step.angles) {
        auto angles = std::make_shared<Angles>();
        angles->frequencies.assign(frequencies, frequencies + count);
        angles->cosines.resize((size_t)(positions * count));
        angles->sines.resize((size_t)(positions * count));
        for (int64_t p = 0; p < positions; p++) {
          for (int64_t i = 0; i < count; i++) {
            const float angle = (float)p * frequencies[i];
            angles->cosines[(size_t)(p * count + i)] = cosf(angle) * step.f[0];
            angles->sines[(size_t)(p * count + i)] = sinf(angle) * step.f[0];
          }
        }
        step.angles = std::move(angles);
      }
      make(step.out, source.width, false);
      break;
    }
    case Op::attend: {
      const Matrix query = need(step.a, "attend"), key = need(step.b, "attend"), value = need(step.c, "attend");
      const int64_t heads = step.n[0], key_heads = step.n[1], reach = step.n[4];
      if (key.texts || value.texts) refuse("attend reads rows that are no tokens");
      if (query.texts != (step.n[5] != 0)) refuse("attend has a row per text where it asks for tokens, or the other way");
      if (heads < 1 || key_heads < 1 || heads % key_heads || query.width % heads || key.width % key_heads ||
          query.width / heads != key.width / key_heads || value.width != key.width) {
        refuse("attend has heads that do not fit its matrices");
      }
      if (reach < 0 || reach > (1 << 20)) refuse("attend has an impossible bias");
      step.bias = optional(arrays[0], heads * (2 * reach + 1), "the bias of attend");
      make(step.out, query.width, query.texts);
      break;
    }
    case Op::pool: {
      const Matrix source = need(step.a, "pool");
      if (source.texts || step.n[0] < 0 || step.n[0] > (int32_t)Pooling::sum_over_root) refuse("pool is of no known kind");
      make(step.out, source.width, true);
      break;
    }
    case Op::unit: {
      const Matrix source = need(step.a, "unit");
      make(step.out, source.width, source.texts);
      break;
    }
  }
  steps_.push_back(std::move(step));
}

void Program::make_stages() {
  std::vector<int> uses(matrices_.size(), 0);
  for (const Step& step : steps_) {
    for (int matrix : {step.a, step.b, step.c}) {
      if (matrix >= 0 && step.op != Op::embed) uses[(size_t)matrix]++;
    }
  }
  for (int output : outputs_) uses[(size_t)output] += 2;
  for (Step& step : steps_) {  // an activation that only codes are made of is made with them
    if (step.op != Op::quantize) continue;
    for (Step& other : steps_) {
      if (other.out == step.a && other.op == Op::activate && uses[(size_t)other.out] == 1) {
        step.activated = other.skipped = true;
        step.function = other.function;
        step.a = other.a;
      }
    }
  }
  int segment = 0;
  for (int i = 0; i < (int)steps_.size(); i++) {
    Step& step = steps_[(size_t)i];
    if (step.skipped) continue;
    Stage::Kind kind = Stage::rows;
    if (step.op == Op::product || step.op == Op::dense) kind = Stage::products;
    if (step.op == Op::attend) kind = Stage::attend;
    if (step.op == Op::pool) kind = Stage::pool;
    const bool texts = matrices_[(size_t)step.out].texts;
    bool joins = !stages_.empty() && stages_.back().kind == kind && stages_.back().texts == texts &&
                 (kind == Stage::rows || kind == Stage::products);
    if (joins && kind == Stage::products) {  // products that read what one of them makes wait for it
      for (int other : stages_.back().steps) joins = joins && steps_[(size_t)other].out != step.a;
    }
    if (!joins) {
      const bool walks = kind == Stage::rows || kind == Stage::products;
      if (stages_.empty() || stages_.back().texts != texts || !walks || stages_.back().kind == Stage::attend ||
          stages_.back().kind == Stage::pool) {
        segment++;
      }
      stages_.emplace_back();
      stages_.back().kind = kind;
      stages_.back().texts = texts;
      stages_.back().segment = segment;
    }
    Stage& stage = stages_.back();
    stage.steps.push_back(i);
    stage.panels += step.op == Op::product ? step.product.panels : step.op == Op::dense ? step.dense.panels : 0;
  }
}

void Program::lay_out() {
  const int last = (int)stages_.size();
  for (Matrix& matrix : matrices_) matrix.made = matrix.used = -1;
  for (int s = 0; s < last; s++) {
    for (int i : stages_[(size_t)s].steps) {
      const Step& step = steps_[(size_t)i];
      matrices_[(size_t)step.out].made = s;
      matrices_[(size_t)step.out].used = s;
      if (step.op == Op::embed) continue;
      for (int matrix : {step.a, step.b, step.c}) {
        if (matrix >= 0) matrices_[(size_t)matrix].used = s;
      }
    }
  }
  for (int output : outputs_) matrices_[(size_t)output].used = last;
  for (int s = 0; s < last; s++) {
    for (int i : stages_[(size_t)s].steps) {
      Matrix& matrix = matrices_[(size_t)steps_[(size_t)i].out];
      // Blocks of rows go through a segment one after the other: what no other segment reads is needed for one block.
      const bool blocked = stages_[(size_t)s].kind == Stage::rows || stages_[(size_t)s].kind == Stage::products;
      matrix.local = blocked && !matrix.texts && matrix.used < last &&
                     stages_[(size_t)matrix.used].segment == stages_[(size_t)s].segment;
      const int64_t bytes = matrix.codes ? round_up(matrix.stride * kernels_.code_bytes, align) + align : matrix.stride * 4;
      Slot* found = nullptr;
      for (Slot& slot : slots_) {
        // A whole matrix may not take the place of one that blocks to come still read or write: wait for the segment.
        const bool rests = slot.free_after < 0 || slot.free_after >= s ? false
                           : slot.local                                ? true
                                        : stages_[(size_t)slot.free_after].segment < stages_[(size_t)s].segment;
        if (rests && slot.texts == matrix.texts && slot.local == matrix.local && slot.bytes >= bytes &&
            slot.bytes <= 2 * bytes) {
          found = &slot;
          break;
        }
      }
      if (found == nullptr) {
        slots_.emplace_back();
        found = &slots_.back();
        found->bytes = bytes;
        found->texts = matrix.texts;
        found->local = matrix.local;
      }
      found->free_after = matrix.used;
      matrix.slot = (int)(found - slots_.data());
      matrix.offset = found->bytes;
    }
  }
}

std::unique_ptr<Program::Workspace> Program::take_workspace() const {
  // Tried, not waited for: another thread may have held it when this process was forked.
  std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock() || free_.empty()) return std::make_unique<Workspace>();
  std::unique_ptr<Workspace> taken = std::move(free_.back());
  free_.pop_back();
  return taken;
}

void Program::give_back(std::unique_ptr<Workspace> workspace) const {
  std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (lock.owns_lock()) free_.push_back(std::move(workspace));
}

namespace {

// Where a row of a matrix lies. Codes have their peak behind them.
inline char* row_of(const std::vector<void*>& slots, int slot, int64_t bytes, int64_t row) {
  return (char*)slots[(size_t)slot] + row * bytes;
}

}  // namespace

#define ROW(matrix, row) \
  row_of(team.workspace.slots, matrices_[(size_t)(matrix)].slot, matrices_[(size_t)(matrix)].offset, \
         matrices_[(size_t)(matrix)].local ? (row)-block : (row))
#define FLOATS(matrix, row) ((float*)ROW(matrix, row))

// The row of a table that a token takes.
int64_t Program::find_place(const TableRecord& table, const Texts& texts, int64_t token, int64_t text) const {
  const int64_t first = texts.starts[text];
  switch ((Index)table.index) {
    case Index::tokens: return texts.ids[token] + (int64_t)table.shift;
    case Index::types: return (texts.types ? texts.types[token] : 0) + (int64_t)table.shift;
    case Index::columns: return (texts.columns ? texts.columns[token] : token - first) + table.shift;
    case Index::order: break;
  }
  if (table.uncounted < 0) return token - first + table.shift;
  if (texts.ids[token] == table.uncounted) return table.shift - 1;
  int64_t before = 0;
  for (int64_t i = first; i < token; i++) before += texts.ids[i] != table.uncounted;
  return before + table.shift;
}

void Program::run_row(const Step& step, const Texts& texts, Team& team, int64_t row, int64_t block,
                      float* scratch) const {
  const Matrix& out = matrices_[(size_t)step.out];
  switch (step.op) {
    case Op::embed: {
      LookupTable tables[8];
      int64_t places[8];
      const int64_t token = team.first_token + row, text = team.text_of[token];
      for (int t = 0; t < step.table_count; t++) {
        const TableRecord& table = tables_[(size_t)(step.first_table + t)];
        tables[t].rows = table.rows.data;
        tables[t].scales = (const float*)table.scales.data;
        places[t] = find_place(table, texts, token, text);
      }
      kernels_.embed(tables, places, step.table_count, out.width, FLOATS(step.out, row));
      break;
    }
    case Op::norm:
      kernels_.norm(FLOATS(step.a, row), step.weight, step.bias, step.f[0], step.n[0] != 0, out.width,
                    FLOATS(step.out, row));
      break;
    case Op::head_norm: {
      const int64_t width = out.width / step.n[1];
      for (int64_t h = 0; h < step.n[1]; h++) {
        kernels_.norm(FLOATS(step.a, row) + h * width, step.weight, step.bias, step.f[0], step.n[0] != 0, width,
                      FLOATS(step.out, row) + h * width);
      }
      break;
    }
    case Op::add: kernels_.add(FLOATS(step.a, row), FLOATS(step.b, row), out.width, FLOATS(step.out, row)); break;
    case Op::multiply:
      kernels_.multiply(FLOATS(step.a, row), FLOATS(step.b, row), out.width, FLOATS(step.out, row));
      break;
    case Op::affine:
      kernels_.affine(FLOATS(step.a, row), step.weight, step.bias, out.width, FLOATS(step.out, row));
      break;
    case Op::activate: kernels_.activate(step.function, FLOATS(step.a, row), out.width, FLOATS(step.out, row)); break;
    case Op::columns:
      memcpy(FLOATS(step.out, row), FLOATS(step.a, row) + step.n[0], (size_t)out.width * 4);
      break;
    case Op::quantize: {
      char* codes = ROW(step.out, row);
      float* peak = (float*)(codes + round_up(out.stride * kernels_.code_bytes, align));
      const int64_t padded = round_up(out.width, kernels_.inner_step);
      if (step.activated) {
        kernels_.activate_quantize(step.function, step.quantizer, FLOATS(step.a, row), out.width, padded, scratch, codes,
                                   peak);
      } else {
        kernels_.quantize(step.quantizer, FLOATS(step.a, row), out.width, padded, scratch, codes, peak);
      }
      break;
    }
    case Op::rotate: {
      const int64_t heads = step.n[0], count = step.n[1], width = out.width / heads;
      const int64_t token = team.first_token + row, text = team.text_of[token];
      const int64_t place = (Index)step.n[4] == Index::columns && texts.columns ? texts.columns[token]
                                                                                : token - texts.starts[text];
      const float *c = step.angles->cosines.data() + place * count, *s = step.angles->sines.data() + place * count;
      const float* source = FLOATS(step.a, row);
      float* made = FLOATS(step.out, row);
      const bool interleaved = step.n[2] != 0;
      const int64_t apart = interleaved ? 1 : count, stride = interleaved ? 2 : 1;
      for (int64_t h = 0; h < heads; h++, source += width, made += width) {
        for (int64_t i = 0; i < count; i++) {
          const float x = source[i * stride], y = source[i * stride + apart];
          made[i * stride] = x * c[i] - y * s[i];
          made[i * stride + apart] = y * c[i] + x * s[i];
        }
        for (int64_t i = 2 * count; i < width; i++) made[i] = source[i];
      }
      break;
    }
    case Op::unit: {
      const float* source = FLOATS(step.a, row);
      float* made = FLOATS(step.out, row);
      double squares = 0;
      for (int64_t i = 0; i < out.width; i++) squares += (double)source[i] * source[i];
      const float length = std::max((float)sqrt(squares), step.f[0]);
      for (int64_t i = 0; i < out.width; i++) made[i] = source[i] / length;
      break;
    }
    default: break;
  }
}

void Program::attend(const Step& step, const Texts& texts, Team& team, int64_t text, int head, float* scratch) const {
  const int64_t block = 0, row = texts.starts[text] - team.first_token;
  const Matrix &query = matrices_[(size_t)step.a], &key = matrices_[(size_t)step.b];
  const Matrix &value = matrices_[(size_t)step.c], &out = matrices_[(size_t)step.out];
  const int64_t own = query.texts ? text - team.first_text : row;  // of the query and of what is made
  AttentionShape shape;
  shape.queries = query.texts ? 1 : texts.starts[text + 1] - texts.starts[text];
  shape.tokens = texts.starts[text + 1] - texts.starts[text];
  shape.width = query.width / step.n[0];
  shape.query_stride = query.offset / 4;
  shape.key_stride = key.offset / 4;
  shape.value_stride = value.offset / 4;
  shape.out_stride = out.offset / 4;
  shape.scale = step.f[0];
  shape.causal = step.n[2] != 0;
  shape.window = step.n[3];
  shape.reach = step.n[4];
  shape.bias = step.bias ? step.bias + head * (2 * shape.reach + 1) : nullptr;
  const int key_head = head / (step.n[0] / step.n[1]);
  kernels_.attend(shape, FLOATS(step.a, own) + head * shape.width, FLOATS(step.b, row) + key_head * shape.width,
                  FLOATS(step.c, row) + key_head * shape.width, scratch, FLOATS(step.out, own) + head * shape.width);
}

void Program::pool_text(const Step& step, const Texts& texts, Team& team, int64_t text) const {
  const int64_t block = 0, first = texts.starts[text] - team.first_token;
  const int64_t count = texts.starts[text + 1] - texts.starts[text];
  const int64_t width = matrices_[(size_t)step.out].width;
  float* out = FLOATS(step.out, text - team.first_text);
  const Pooling kind = (Pooling)step.n[0];
  if (kind == Pooling::first || kind == Pooling::last) {
    memcpy(out, FLOATS(step.a, kind == Pooling::first ? first : first + count - 1), (size_t)width * 4);
    return;
  }
  memcpy(out, FLOATS(step.a, first), (size_t)width * 4);
  for (int64_t t = 1; t < count; t++) {
    const float* row = FLOATS(step.a, first + t);
    if (kind == Pooling::max) {
      for (int64_t i = 0; i < width; i++) out[i] = std::max(out[i], row[i]);
    } else {
      for (int64_t i = 0; i < width; i++) out[i] += row[i];
    }
  }
  if (kind == Pooling::max) return;
  const float by = kind == Pooling::mean ? (float)count : sqrtf((float)count);
  for (int64_t i = 0; i < width; i++) out[i] /= by;
}

void Program::run_group(const Texts& texts, int64_t first, int64_t last, float* const* outputs, Team& team,
                        int member) const {
  float* scratch = team.workspace.scratch[(size_t)member];
  const int members = team.members;
  const auto share = [&](int64_t count, auto&& use) {
    for (int64_t i = count * member / members; i < count * (member + 1) / members; i++) use(i);
  };
  const auto run_stage = [&](const Stage& stage, int64_t block, int64_t rows) {
    if (stage.kind == Stage::rows) {
      share(rows, [&](int64_t r) {
        for (int i : stage.steps) run_row(steps_[(size_t)i], texts, team, block + r, block, scratch);
      });
      return;
    }
    share(stage.panels, [&](int64_t panel) {
      size_t i = 0;
      for (;; i++) {
        const Step& step = steps_[(size_t)stage.steps[i]];
        const int64_t count = step.op == Op::product ? step.product.panels : step.dense.panels;
        if (panel < count) break;
        panel -= count;
      }
      const Step& step = steps_[(size_t)stage.steps[i]];
      const Matrix &source = matrices_[(size_t)step.a], &out = matrices_[(size_t)step.out];
      if (step.op == Op::dense) {
        kernels_.dense(step.dense, panel, FLOATS(step.a, block), source.offset / 4, rows, FLOATS(step.out, block),
                       out.offset / 4);
        return;
      }
      const int64_t codes_bytes = round_up(source.stride * kernels_.code_bytes, align);
      float* peaks = scratch;  // gathered: they lie behind each row's codes
      for (int64_t r = 0; r < rows; r++) memcpy(peaks + r, ROW(step.a, block + r) + codes_bytes, 4);
      kernels_.product(step.product, panel, ROW(step.a, block), source.offset / kernels_.code_bytes, peaks, rows,
                       FLOATS(step.out, block), out.offset / 4);
    });
  };
  for (size_t s = 0; s < stages_.size();) {
    const Stage& stage = stages_[s];
    if (stage.kind == Stage::attend || stage.kind == Stage::pool) {
      const Step& step = steps_[(size_t)stage.steps[0]];
      if (stage.kind == Stage::attend) {
        const int heads = step.n[0];
        share((last - first) * heads, [&](int64_t i) {
          attend(step, texts, team, first + i / heads, (int)(i % heads), scratch);
        });
      } else {
        share(last - first, [&](int64_t i) { pool_text(step, texts, team, first + i); });
      }
      team.barrier.wait();
      s++;
      continue;
    }
    size_t end = s;
    while (end < stages_.size() && stages_[end].segment == stage.segment) end++;
    const int64_t rows = stage.texts ? last - first : team.tokens;
    for (int64_t block = 0; block < rows; block += block_rows) {
      for (size_t i = s; i < end; i++) {
        run_stage(stages_[i], block, std::min(block_rows, rows - block));
        team.barrier.wait();
      }
    }
    s = end;
  }
  const int64_t block = 0;
  for (size_t o = 0; o < outputs_.size(); o++) {
    const int64_t width = matrices_[(size_t)outputs_[o]].width;
    share(last - first, [&](int64_t i) {
      memcpy(outputs[o] + (first + i) * width, FLOATS(outputs_[o], i), (size_t)width * 4);
    });
  }
}

void Program::run(const Texts& texts, int threads, float* const* outputs) const {
  const int64_t tokens = texts.starts[texts.count];
  int64_t longest = 0;
  for (int64_t t = 0; t < texts.count; t++) {
    const int64_t length = texts.starts[t + 1] - texts.starts[t];
    if (length < 1) throw std::out_of_range("a text has no token");
    longest = std::max(longest, length);
  }
  // Every place in every table is looked at before a row is read.
  int64_t deepest = longest - 1;
  if (texts.columns) {
    for (int64_t i = 0; i < tokens; i++) {
      if (texts.columns[i] < 0) throw std::out_of_range("a token stands in a negative column");
      deepest = std::max<int64_t>(deepest, texts.columns[i]);
    }
  }
  for (const TableRecord& table : tables_) {
    const Index index = (Index)table.index;
    if (index == Index::columns || index == Index::order) {
      if ((index == Index::columns ? deepest : longest - 1) + table.shift >= table.count) throw std::out_of_range("a text is longer than the positions there are");
      continue;
    }
    const int32_t* places = index == Index::tokens ? texts.ids : texts.types;
    if (places == nullptr) continue;
    for (int64_t i = 0; i < tokens; i++) {
      if (places[i] < 0 || places[i] + (int64_t)table.shift >= table.count) {
        throw std::out_of_range("a token's id is beyond the embedding table");
      }
    }
  }
  int64_t attention = 0;
  for (const Step& step : steps_) {
    if (step.op == Op::attend) {
      const int64_t width = matrices_[(size_t)step.a].width / step.n[0];
      attention = std::max(attention, kernels_.attention_scratch(longest, width));
    }
    if (step.op == Op::rotate && deepest >= step.n[3]) {
      throw std::out_of_range("a text is longer than the positions there are");
    }
  }

  threads = std::max(threads, 1);
  // Texts that follow one another, of so many tokens together that every thread has some.
  const int64_t together = std::clamp(tokens / (2 * threads), least_group_tokens, group_tokens);
  std::vector<int64_t> groups{0};
  for (int64_t t = 0; t < texts.count; t++) {
    if (t > groups.back() && texts.starts[t + 1] - texts.starts[groups.back()] > together) groups.push_back(t);
  }
  groups.push_back(texts.count);
  const int64_t group_count = (int64_t)groups.size() - 1;

  const auto prepare = [&](Workspace& space, int members, int64_t rows, int64_t group_texts) {
    if (space.rows < rows || space.texts < group_texts || space.slots.empty()) {
      for (void* memory : space.slots) free(memory);
      space.slots.clear();
      space.rows = std::max(space.rows, rows);
      space.texts = std::max(space.texts, group_texts);
      for (const Slot& slot : slots_) {
        const int64_t count = slot.texts ? space.texts : slot.local ? block_rows : space.rows;
        space.slots.push_back(allocate(count * slot.bytes));
      }
    }
    const int64_t needed = std::max({attention, widest_, block_rows});
    if (space.scratch_floats < needed || (int)space.scratch.size() < members) {
      members = std::max(members, (int)space.scratch.size());
      for (float* memory : space.scratch) free(memory);
      space.scratch.clear();
      space.scratch_floats = std::max(space.scratch_floats, needed);
      for (int m = 0; m < members; m++) space.scratch.push_back((float*)allocate(4 * space.scratch_floats));
    }
  };
  std::vector<int64_t> text_of((size_t)tokens);
  for (int64_t t = 0; t < texts.count; t++) {
    std::fill(text_of.begin() + texts.starts[t], text_of.begin() + texts.starts[t + 1], t);
  }
  const auto run_one = [&](int64_t group, Team& team, int member) {
    const int64_t first = groups[(size_t)group], last = groups[(size_t)group + 1];
    if (member == 0) {
      team.first_text = first;
      team.last_text = last;
      team.first_token = texts.starts[first];
      team.tokens = texts.starts[last] - texts.starts[first];
      team.text_of = text_of.data();
    }
    team.barrier.wait();
    run_group(texts, first, last, outputs, team, member);
    team.barrier.wait();  // what the next group is, all members read
  };
  const auto group_rows = [&](int64_t group) {
    return texts.starts[groups[(size_t)group + 1]] - texts.starts[groups[(size_t)group]];
  };
  int64_t most_rows = 0, most_texts = 0;
  for (int64_t g = 0; g < group_count; g++) {
    most_rows = std::max(most_rows, group_rows(g));
    most_texts = std::max(most_texts, groups[(size_t)g + 1] - groups[(size_t)g]);
  }

  if (threads > 1 && group_count < threads) {  // too few to share out: all threads work on one group after the other
    std::unique_ptr<Workspace> space = take_workspace();
    prepare(*space, threads, most_rows, most_texts);
    Team team(threads, *space);
    const bool done = Pool::of_process().try_run(threads, [&](int member) {
      for (int64_t g = 0; g < group_count; g++) run_one(g, team, member);
    });
    give_back(std::move(space));
    if (done) return;
    threads = 1;  // others have the threads: the caller's own is enough, and gives the same
  }
  // All memory is taken here: a thread of the pool has nobody to throw to.
  threads = (int)std::min<int64_t>(threads, group_count);
  std::vector<std::unique_ptr<Workspace>> spaces;
  for (int i = 0; i < threads; i++) {
    spaces.push_back(take_workspace());
    prepare(*spaces.back(), 1, most_rows, most_texts);
  }
  std::atomic<int64_t> next{0};
  const auto take_groups = [&](int member) {
    Team team(1, *spaces[(size_t)member]);
    for (int64_t g = next.fetch_add(1); g < group_count; g = next.fetch_add(1)) run_one(g, team, 0);
  };
  if (!Pool::of_process().try_run(threads, take_groups)) take_groups(0);
  for (std::unique_ptr<Workspace>& space : spaces) give_back(std::move(space));
}

}  // namespace matexport
