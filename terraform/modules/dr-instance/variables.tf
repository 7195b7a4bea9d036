variable "name" {
  description = "The instance's name."
  type        = string
}

variable "shard" {
  description = "The shard that is recovered on it; also the value of the tag mysql-pitr:shard, by which the roles know it."
  type        = string
}

variable "recovery_active" {
  description = "True for the recovery: the instance has the wider role. False before and after: it has the agent's."
  type        = bool
  default     = false
}

variable "agent_instance_profile" {
  description = "The instance profile of the agent's role in this region (output instance_profile of agent-role)."
  type        = string
}

variable "recovery_instance_profile" {
  description = "The instance profile of the recovery's role (output instance_profile of recovery-role)."
  type        = string
}

variable "ami" {
  description = "An image of this region with mysqld, at least as new as the lost server's, and mysql-pitr. A copy that is there already: the home region may be gone."
  type        = string
}

variable "instance_type" {
  description = "The instance's type, for instance r7g.2xlarge."
  type        = string
}

variable "subnet_id" {
  description = "The subnet, and with it the availability zone."
  type        = string
}

variable "security_group_ids" {
  description = "Security groups. The instance needs to reach S3, EC2 and KMS of its region."
  type        = list(string)
}

variable "kms_key_arn" {
  description = "This region's key for the instance's volumes."
  type        = string
}

variable "root_gib" {
  description = "The size of the root volume."
  type        = number
  default     = 30
}

variable "volume" {
  description = "A data volume made by Terraform, from snapshot_id or, where that is null, from the newest snapshot with the shard's tag. null: mysql-pitr recover makes it, from the newest snapshot that serves the target."
  type = object({
    snapshot_id         = optional(string)
    type                = optional(string, "gp3")
    iops                = optional(number)
    throughput          = optional(number)
    initialization_rate = optional(number)
    device_name         = optional(string, "/dev/sdf")
  })
  default = null
}

variable "key_name" {
  description = "An EC2 key pair; null: none, where the image has another way in."
  type        = string
  default     = null
}

variable "user_data" {
  description = "What cloud-init is to do; null: nothing."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags of the instance and its volumes."
  type        = map(string)
  default     = {}
}
