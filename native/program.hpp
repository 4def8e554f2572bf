// A list of steps, ready to run on texts of any number and lengths.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace matexport {

// The kinds of steps, as matexport/runtime/engines/native/steps.py describes them.
enum class Op : int32_t {
  embed, norm, add, multiply, affine, activate, columns, quantize, product, dense, rotate, head_norm, attend, pool, unit
};
enum class Index : int32_t { tokens, types, columns, order };
enum class Pooling : int32_t { mean, first, last, max, sum_over_root };

// What crosses the border to Python: plain numbers and addresses, each address with how many numbers lie there.
struct Span {
  const void* data;
  int64_t count;
};
struct StepRecord {
  int32_t op, out, sources[3];
  int32_t numbers[6];
  float reals[2];
  Span arrays[4];
};
struct TableRecord {
  Span rows, scales;
  int64_t count;
  int32_t index, shift;
  int64_t uncounted;  // the id of tokens that `order` leaves out; -1 where there is none
};

struct Texts {
  const int32_t* ids;
  const int32_t* types;    // or null: all 0
  const int32_t* columns;  // or null: as `order`
  const int64_t* starts;   // (count + 1): where each text's tokens begin
  int64_t count;
};

class Program {
 public:
  // Throws std::invalid_argument where the steps do not fit together, whatever they hold.
  Program(const Kernels& kernels, const StepRecord* steps, int64_t step_count, const TableRecord* tables,
          int64_t table_count, const int32_t* outputs, int64_t output_count);
  ~Program();
  Program(const Program&) = delete;

  // Writes (texts, width) float32 for each output. Throws std::out_of_range where an id is beyond its table.
  void run(const Texts& texts, int threads, float* const* outputs) const;

  int64_t width(int64_t output) const { return matrices_[outputs_[output]].width; }

 private:
  struct Matrix {
    int64_t width = 0, stride = 0;  // numbers; of codes, codes
    bool texts = false, codes = false, local = false, known = false;
    int made = 0, used = 0;         // stages
    int64_t offset = 0;             // in a workspace, bytes per row; see `lay_out`
    int slot = -1;
  };
  // Of a rotation, by position: (positions, count) each.
  struct Angles {
    std::vector<float> frequencies, cosines, sines;
  };
  struct Step {
    Op op;
    int out = -1, a = -1, b = -1, c = -1;
    int32_t n[6] = {};
    float f[2] = {};
    const float *weight = nullptr, *bias = nullptr;
    Quantizer quantizer;
    bool activated = false, skipped = false;  // an activation that is made while its codes are
    Function function = Function::gelu;
    int first_table = 0, table_count = 0;
    PackedProduct product;
    PackedDense dense;
    std::shared_ptr<const Angles> angles;
  };
  struct Stage {
    enum Kind { rows, products, attend, pool } kind;
    std::vector<int> steps;
    bool texts = false;
    int segment = 0;
    int64_t panels = 0;
  };
  struct Slot {
    int64_t bytes = 0;  // of a row
    bool texts = false, local = false;
    int free_after = -1;
  };
  struct Workspace;
  struct Team;

  void* reserve(int64_t bytes);
  void read_step(const StepRecord& record, const TableRecord* tables, int64_t table_count);
  void make_stages();
  void lay_out();
  Matrix& need(int matrix, const char* what, bool codes = false);
  Matrix& make(int matrix, int64_t width, bool texts, bool codes = false);
  void run_group(const Texts& texts, int64_t first, int64_t last, float* const* outputs, Team& team, int member) const;
  int64_t find_place(const TableRecord& table, const Texts& texts, int64_t token, int64_t text) const;
  void run_row(const Step& step, const Texts& texts, Team& team, int64_t row, int64_t block, float* scratch) const;
  void attend(const Step& step, const Texts& texts, Team& team, int64_t text, int head, float* scratch) const;
  void pool_text(const Step& step, const Texts& texts, Team& team, int64_t text) const;
  std::unique_ptr<Workspace> take_workspace() const;
  void give_back(std::unique_ptr<Workspace> workspace) const;

  const Kernels& kernels_;
  std::vector<Matrix> matrices_;
  std::vector<Step> steps_;
  std::vector<Stage> stages_;
  std::vector<Slot> slots_;
  std::vector<TableRecord> tables_;
  std::vector<int> outputs_;
  std::vector<void*> owned_;
  char* next_ = nullptr;  // in the last of `owned_`: weights lie one after the other
  int64_t left_ = 0, arena_bytes_ = 0;
  int64_t widest_ = 0;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Workspace>> free_;
};

}  // namespace matexport
